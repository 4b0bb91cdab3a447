"""Building blocks of the analyses: fold, context, intervals and tests, mismatched groups, variants, line plots.

Imports `figures`. Imported by the analyses.
"""
