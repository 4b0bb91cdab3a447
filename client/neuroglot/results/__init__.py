"""Results: results of groups with their type maps, captured layers, generated tokens.

Imports `request` and `definitions`. Imported by everything above it.
"""
