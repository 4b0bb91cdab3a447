"""Uploaded neuron sets: named by content, separate per tenant, and resolved in nested selections."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neuroglot_server.core import (
    Analysis,
    ByNeuron,
    ByType,
    ByUpload,
    Control,
    ControlKind,
    Deactivate,
    Difference,
    Intersection,
    Intervention,
    NeuronType,
    Selection,
    Union,
    UploadNotFound,
    Variant,
)
from neuroglot_server.intake.uploads import Uploads, interventions_with_uploads, with_uploads


def neurons(*layers: int) -> ByNeuron:
    return ByNeuron("decoder", len(layers), 8, bytes(layers))


AROUND = 512
"""Overhead of a set beside its bits, in bytes."""


def bytes_of(count: int, bits: int = 1) -> int:
    """Bytes of `count` sets with `bits` bytes of bits each."""
    return count * (AROUND + bits)


def test_an_upload_is_found_by_a_hash_of_its_content() -> None:
    uploads = Uploads(10_000, 10_000)
    first, second = uploads.add("", neurons(1, 2)), uploads.add("", neurons(2, 1))
    assert uploads.resolve("", first) == neurons(1, 2)
    assert uploads.resolve("", second) == neurons(2, 1)
    assert uploads.add("", neurons(1, 2)) == first == Uploads(5, 5).add("anybody", neurons(1, 2))
    assert len({first, second, uploads.add("", replace(neurons(1, 2), component="encoder"))}) == 3


def test_tenants_do_not_see_each_others_sets() -> None:
    uploads = Uploads(10_000, 10_000)
    name = uploads.add("ann", neurons(1))
    with pytest.raises(UploadNotFound, match=f"{name}.*upload them again"):
        uploads.resolve("bob", name)
    uploads.add("bob", neurons(1))
    assert uploads.resolve("bob", name) == uploads.resolve("ann", name)


def test_the_least_recently_used_sets_are_evicted() -> None:
    uploads = Uploads(10_000, bytes_of(3))
    one, two, three = (uploads.add("", neurons(bits)) for bits in (1, 2, 3))
    uploads.resolve("", one)
    uploads.add("", neurons(2))  # again
    four = uploads.add("", neurons(4))
    for name in (one, two, four):
        uploads.resolve("", name)
    with pytest.raises(UploadNotFound):
        uploads.resolve("", three)


def test_a_set_that_is_larger_than_the_limit_is_kept_alone() -> None:
    uploads = Uploads(3, 3)
    small, large = uploads.add("", neurons(1)), uploads.add("", neurons(1, 2, 3, 4))
    assert uploads.resolve("", large) == neurons(1, 2, 3, 4)
    with pytest.raises(UploadNotFound):
        uploads.resolve("", small)


def test_a_tenant_does_not_evict_sets_of_others_within_their_share() -> None:
    uploads = Uploads(bytes_of(6), bytes_of(4))
    anns = [uploads.add("ann", neurons(bits)) for bits in (1, 2)]
    for bits in range(100):
        uploads.add("bob", neurons(bits))
    cys = [uploads.add("cy", neurons(bits)) for bits in (5, 6)]  # evicts two of bob's four sets
    for tenant, names in (("ann", anns), ("cy", cys)):
        for name in names:
            uploads.resolve(tenant, name)
    assert uploads.resolve("bob", uploads.add("", neurons(99))) == neurons(99)
    with pytest.raises(UploadNotFound):
        uploads.resolve("bob", uploads.add("", neurons(97)))


def test_names_are_replaced_at_any_depth() -> None:
    sets = {"a": neurons(1), "b": neurons(2)}
    types = ByType((NeuronType.SPECIFIC,))

    def selection(a: Selection, b: Selection) -> Selection:
        return Difference((Union((types, Control(a, ControlKind.RANDOM, 2, 3))), Intersection((b, a))))

    named = Intervention(selection(ByUpload("a"), ByUpload("b")), Deactivate(), layers=(1,))
    found = replace(named, selection=selection(sets["a"], sets["b"]))
    assert interventions_with_uploads((named,), sets.__getitem__) == (found,)
    analysis = Analysis(thresholds=(0.5,), variants=(Variant("v", (named, found)), Variant("w", (found,))))
    expected = Analysis(thresholds=(0.5,), variants=(Variant("v", (found, found)), Variant("w", (found,))))
    assert with_uploads(analysis, sets.__getitem__) == expected


def test_an_unknown_name_is_refused() -> None:
    analysis = Analysis(variants=(Variant("v", (Intervention(Union((ByUpload("x"),)), Deactivate()),)),))
    with pytest.raises(UploadNotFound, match="'x'"):
        with_uploads(analysis, lambda name: Uploads(1, 1).resolve("", name))
