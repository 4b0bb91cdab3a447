"""Which steps of which requests form the next batch: fair between tenants, interactive before bulk, within a budget.

Imports `engine` and `core`. Imported by the folders above it, `cache` to `models`.
"""
