"""What analyses are made of: the fold, the context of a run, intervals and tests, mismatched groups, variants, lines.

Imports `figures`. Imported by the analyses.
"""
