"""What captions and definitions say alike: of what, over how many, and how sure."""

from __future__ import annotations

from collections.abc import Mapping

from neuroglot.analyses.base.fold import Fold


def neurons(geometry: Mapping[str, tuple[int, int]]) -> str:
    """How wide a layer is: `512 encoder neurons and 512 decoder neurons`."""
    return " and ".join(f"{count:,} {name} neurons" for name, (_, count) in geometry.items())


def sample(fold: Fold) -> str:
    """Over what a mean is taken: groups, their clusters, prompts and languages."""
    clusters = len(fold.sums.clusters)
    return (
        f"{fold.groups:,} parallel groups"
        + (f" in {clusters:,} clusters" if clusters != fold.groups else "")
        + f", {fold.groups * len(fold.languages):,} prompts ({', '.join(fold.languages)})"
    )


def band(fold: Fold) -> str:
    """What the band around a line is."""
    return f"Bands: 95 % intervals, bootstrap over clusters ({fold.options.replicates:,} replicates)."


def mismatched(fold: Fold) -> str:
    """What a dashed line is, over how many groups."""
    if not fold.mismatched:
        return "No mismatched groups: for these, examples must be of as many clusters as there are languages."
    return (
        f"Dashed: {len(fold.mismatched):,} mismatched groups, every language of which has an example of another "
        "cluster: what is shared there is not shared for its meaning."
    )


def layer(fold: Fold) -> str:
    """Of the axis of layers; says what a dashed line is, if there are any."""
    return "layer (dashed: mismatched groups)" if fold.mismatched else "layer"
