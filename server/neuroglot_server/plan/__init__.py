"""The plan of a request, a module an RPC: `group`, `generate`, `capture`; and what they share: prefill, runner, rows.

Imports all folders below it, `neurons` to `core`. Imported by `models`.
"""
