"""What a server answers: results of groups and the type maps in them, captured layers, generated tokens.

Imports `request` and `definitions`. Imported by everything above it.
"""
