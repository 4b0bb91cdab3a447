"""A run's folder: its settings, its answers on disk, and parts of a run put together.

Imports `results` and below. Imported by `analyses`, `report`, `pipeline` and `cli`.
"""
