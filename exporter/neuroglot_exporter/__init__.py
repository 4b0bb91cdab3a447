"""Turns checkpoints into bundles.

>>> from neuroglot_exporter import export
>>> export("bigscience/bloomz-560m", Path("bundles/bloomz-560m"))      # doctest: +SKIP

The way of a checkpoint, in the order of the modules: `checkpoints` finds it, `families` says where its neurons are,
`tracing` makes a graph without weights, `rewrite` opens the FFN, `weights` writes the parameters, `verification`
compares with transformers, and `exporting` leads through it all.
"""

from __future__ import annotations

from neuroglot_exporter.exporting import export

__all__ = ["export"]
