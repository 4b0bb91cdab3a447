"""Several runs side by side: what differs between them, their tables joined, and figures that overlay them.

    compared_runs  the runs, each with a short name made of what differs
    comparison     what every comparison is: a table of several runs, and its figure
    types          the four types by layer, a line a run                     Figures 7, 14, 15, 20
    shares         the four types over all layers, by run or by shots        Figure 21
    answering      exact match in each language, a mark a run
    differences    what changes from the first run on, paired where they ask about the same examples

Made from the studies of runs that are on disk: nothing is asked of a server.
Imports `analyses` and below. Imported by `report` and `pipeline`.
"""
