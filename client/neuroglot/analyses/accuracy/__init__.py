"""Accuracy under ablations and conversions, with paired tests; tokenization of the gold answers.

The paper's Tables 2 and 3. Imports `base` and `figures`. Imported by the registry of analyses.
"""
