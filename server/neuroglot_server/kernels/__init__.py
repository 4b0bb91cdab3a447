"""The science on arrays: pure numpy without state or I/O; the thread on which it runs, and what it costs.

Imports `core` only. Imported by `engine` to `models`.

Shapes use the words of the whole service: R rows (languages), layers, neurons, and 4 types.
"""
