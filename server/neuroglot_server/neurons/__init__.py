"""What a group's baseline shows, types, contributions and scores, and what interventions do to each row.

Imports `intake` (rows and their tokens), `engine`, `kernels` and `core`. Imported by `plan` and `models`.
"""
