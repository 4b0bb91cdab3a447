"""Compares a bundle's graphs with transformers, which computes the same with forward hooks.

In the order of the modules: `rows` turns texts into token ids, `interventions` says what is done to them, `exported`
runs them through the graphs and `reference` through transformers, `measurement` says how far the two may be apart,
`verify` leads through it all, and `process` does it in a process of its own.
"""
