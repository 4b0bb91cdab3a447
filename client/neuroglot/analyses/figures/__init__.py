"""Style of the figures, and output of figures and tables.

Imports nothing of the analyses.
"""
