"""Attribution: contributions, effective scores, and the types of the top contributors.

The paper's Figures 8 to 10 and 23 to 29. Imports `base` and `figures`. Imported by the registry of analyses.
"""
