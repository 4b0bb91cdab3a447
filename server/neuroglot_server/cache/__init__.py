"""The prefix cache, and single flight: a step that several requests need is run once.

Imports `scheduler`, `engine` and `core`. Imported by `plan` and `models`.
"""
