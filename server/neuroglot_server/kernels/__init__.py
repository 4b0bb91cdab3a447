"""The science on arrays: pure numpy, no state, no I/O.

Shapes use the words of the whole service: R rows (languages), layers, neurons, and 4 types.
"""
