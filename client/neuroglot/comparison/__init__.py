"""Comparison of several runs: differing settings, joined tables, and figures that overlay the runs.

    compared_runs  the runs, each with a short name made of its differing settings
    comparison     base class: a table of several runs, and its figure
    types          the four types by layer, one line a run                   Figures 7, 14, 15, 20
    shares         the four types over all layers, by run or by shots        Figure 21
    answering      exact match by language, one mark a run
    differences    differences from the first run, paired, for runs of the same examples

Computed from runs on disk, without a server.
Imports `analyses` and below. Imported by `report` and `pipeline`.
"""
