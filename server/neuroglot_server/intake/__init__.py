"""A request before it runs: validation, tokenizing, uploads, what it costs, and admission.

Imports `scheduler` (sizes of batches), `kernels` (their cost), `config` and `core`. Imported by `neurons` and above.
"""
