"""How figures look, and how they and tables are saved.

Imports nothing of the analyses.
"""
