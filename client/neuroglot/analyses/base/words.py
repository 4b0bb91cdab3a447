"""Phrases shared by captions and definitions: layer width, sample size, intervals, mismatched groups."""

from __future__ import annotations

from collections.abc import Mapping

from neuroglot.analyses.base.fold import Fold


def neurons(geometry: Mapping[str, tuple[int, int]]) -> str:
    """Return the width of a layer: `512 encoder neurons and 512 decoder neurons`."""
    return " and ".join(f"{count:,} {name} neurons" for name, (_, count) in geometry.items())


def sample(fold: Fold) -> str:
    """Return the sample of a mean: numbers of groups, clusters and prompts, and the languages."""
    clusters = len(fold.sums.clusters)
    return (
        f"{fold.groups:,} parallel groups"
        + (f" in {clusters:,} clusters" if clusters != fold.groups else "")
        + f", {fold.groups * len(fold.languages):,} prompts ({', '.join(fold.languages)})"
    )


def band(fold: Fold) -> str:
    """Return the explanation of the bands."""
    return f"Bands: 95 % intervals, bootstrap over clusters ({fold.options.replicates:,} replicates)."


def mismatched(fold: Fold) -> str:
    """Return the explanation of the dashed lines, with the number of mismatched groups."""
    if not fold.mismatched:
        return "No mismatched groups: they need at least as many clusters of examples as languages."
    return (
        f"Dashed: {len(fold.mismatched):,} mismatched groups, which take each language from an example of another "
        "cluster: neurons shared there are not shared because of meaning."
    )


def layer(fold: Fold) -> str:
    """Return the label of the layer axis, which explains the dashed lines if there are any."""
    return "layer (dashed: mismatched groups)" if fold.mismatched else "layer"
