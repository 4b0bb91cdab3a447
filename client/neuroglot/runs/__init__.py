"""Run folders: settings, results on disk, and merging the parts of a run.

Imports `results` and below. Imported by `analyses`, `report`, `pipeline` and `cli`.
"""
