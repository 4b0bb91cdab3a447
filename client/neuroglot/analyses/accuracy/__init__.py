"""Right answers with and without neurons: ablations, conversions, and their paired tests; the gold answers as tokens.

The paper's Tables 2 and 3. Imports `base` and `figures`. Imported by the registry of analyses.
"""
