"""Intake: validation, tokenization, uploaded neuron sets, costs and admission of requests.

Imports `scheduler` (batch sizes), `kernels` (kernel costs), `config` and `core`. Imported by `neurons` and above.
"""
