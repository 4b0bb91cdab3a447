"""A group's baseline, with types, contributions and scores, and the edits of interventions in each row.

Imports `intake` (rows and their tokens), `engine`, `kernels` and `core`. Imported by `plan` and `models`.
"""
