"""Turns checkpoints into bundles.

>>> from neuroglot_exporter import export
>>> export("bigscience/bloomz-560m", Path("bundles/bloomz-560m"))      # doctest: +SKIP

Modules, in the order of an export: `checkpoints` finds the checkpoint, `families` locates its neurons, `tracing` makes
a graph without weights, `rewrite` exposes the FFN, `weights` writes the parameters, `verification` compares the graphs
with transformers, and `exporting` calls them all.
"""

from __future__ import annotations

from neuroglot_exporter.exporting import export

__all__ = ["export"]
