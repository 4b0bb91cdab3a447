"""A served model, and the registry: loading, checking, replacing and retiring models while others run.

Imports all folders below it, `plan` to `core`. Imported by `transport` and `lifecycle`.
"""
