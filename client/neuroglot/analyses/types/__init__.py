"""Neuron types: by layer, language, threshold and number of languages; repeating and dead neurons.

The paper's Figures 2 to 7, 14, 15 and 19 to 22. Imports `base` and `figures`. Imported by the registry of analyses.
"""
