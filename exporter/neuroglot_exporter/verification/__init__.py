"""Compares a bundle's graphs with transformers, which computes the same with forward hooks.

Modules: `rows` turns texts into token ids, `interventions` defines the interventions on them, `exported` runs them
through the graphs and `reference` through transformers, `measurement` defines the tolerances, `verify` calls all of
these, and `process` runs it in a separate process.
"""
