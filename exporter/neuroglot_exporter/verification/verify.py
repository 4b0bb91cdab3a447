"""Verifies a bundle: runs the same texts through its graphs and through transformers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from neuroglot.definitions.bundle import TOKENIZER, read_manifest
from neuroglot.definitions.probe import compare as compare_probe
from neuroglot.v1.probe_pb2 import Probe
from neuroglot_exporter.checkpoints import Checkpoint
from neuroglot_exporter.verification.exported import ExportedModel
from neuroglot_exporter.verification.interventions import Trial, trials
from neuroglot_exporter.verification.measurement import TOLERANCES, Measurement, Verification, compare, measure
from neuroglot_exporter.verification.observation import DECODER, Floats, Observation
from neuroglot_exporter.verification.probe import record
from neuroglot_exporter.verification.reference import Reference
from neuroglot_exporter.verification.rows import Row, rounds, rows_of
from neuroglot_exporter.verification.source import check_geometry

TEXTS = (
    "The capital of France is",
    "Die Hauptstadt von Frankreich ist",
    "La capital de Francia es",
    "Столица Франции —",
    "เมืองหลวงของฝรั่งเศสคือ",
    "Türkiye'nin başkenti",
    "Thủ đô của Pháp là",
    "法国的首都是",
)

_BATCH_ROWS = 8


@dataclass(frozen=True)
class _Computed:
    """Results of the graphs on a row.

    Attributes:
        row: its token ids.
        plain: without an intervention.
        after_past: at the decoder's last position, with the KV cache of the others; None for a single position.
        changed: the logits under each trial, in their order.
    """

    row: Row
    plain: Observation
    after_past: Observation | None
    changed: Sequence[Floats]


def verify(
    bundle: Path,
    checkpoint: Checkpoint,
    texts: Iterable[str] = TEXTS,
    progress: Callable[[str], object] = lambda _stage: None,
) -> Verification:
    """Compare a bundle's graphs with transformers. They run one after the other, so that only one is in memory.

    Returns the measurements whether they pass or not: see `Verification.excesses`.

    Args:
        bundle: its folder; manifest, graphs, weights and tokenizer are read.
        checkpoint: the checkpoint that it was exported from.
        texts: texts to compare on; those without a token are left out.
        progress: called with the name of every stage as it begins.

    Raises:
        BundleError: the bundle cannot be read.
        CheckpointError: the checkpoint cannot be loaded.
        VerificationError: there is nothing to compare: family, geometry or tokenizer differ, or no text has a token.
    """
    began = time.monotonic()
    facts = read_manifest(bundle).model
    check_geometry(facts, checkpoint)
    folder = checkpoint.fetch()
    ours, theirs = Tokenizer.from_file(str(bundle / TOKENIZER)), checkpoint.load_tokenizer(folder)
    rows = rows_of(texts, facts, lambda text: list(ours.encode(text).ids), lambda text: list(theirs(text).input_ids))
    tried = trials(facts.components)
    measurements: dict[str, Measurement] = {}
    by_graphs = by_transformers = Probe()
    first = 0
    for chosen in rounds(rows, facts, passes=1 + len(tried)):
        part = "" if len(chosen) == len(rows) else f", texts {first + 1:,} to {first + len(chosen):,} of {len(rows):,}"
        progress(f"running the graphs{part}")
        exported = ExportedModel(bundle, facts)
        computed = _run_graphs(exported, chosen, first, tried)
        if not first:
            by_graphs = record(exported.run_row, bundle, facts, "onnxruntime")
        del exported  # the graphs leave memory
        progress(f"running transformers{part}")
        gated = {component.name: component.gated for component in facts.components}
        reference = Reference(checkpoint.load_model(folder), checkpoint.family, gated)
        for found in _compare_rows(reference, computed, first, tried):
            for name, measured in found.items():
                measurements[name] = measurements[name].merged(measured) if name in measurements else measured
        if not first:
            by_transformers = record(reference.run, bundle, facts, "transformers")
        del reference
        first += len(chosen)
    return Verification(
        texts=len(rows),
        positions={component.name: sum(len(row[component.name]) for row in rows) for component in facts.components},
        tolerance=TOLERANCES[facts.dtype],
        measurements=measurements,
        probe=by_transformers,
        probe_differences=compare_probe(by_transformers, by_graphs.expected).differences,
        seconds=round(time.monotonic() - began, 1),
    )


def _run_graphs(exported: ExportedModel, rows: Sequence[Row], first: int, tried: Sequence[Trial]) -> list[_Computed]:
    """Run rows through the graphs; `first` is the number of the first row."""
    computed = []
    for begin in range(0, len(rows), _BATCH_ROWS):
        batch = rows[begin : begin + _BATCH_ROWS]
        numbers = range(first + begin, first + begin + len(batch))
        plain = exported.run(batch)
        with_past = [row for row in batch if len(row[DECODER]) > 1]
        after_past = iter(exported.run_last_after_past(with_past) if with_past else ())
        changed = [
            [seen.logits for seen in exported.run(batch, [trial.on_row(number) for number in numbers])]
            for trial in tried
        ]
        computed += [
            _Computed(row, seen, next(after_past) if len(row[DECODER]) > 1 else None, [logits[i] for logits in changed])
            for i, (row, seen) in enumerate(zip(batch, plain, strict=True))
        ]
    return computed


def _compare_rows(
    reference: Reference, computed: Sequence[_Computed], first: int, tried: Sequence[Trial]
) -> Iterator[dict[str, Measurement]]:
    """Run rows through transformers, and yield the measurements of each, by what was compared."""
    for number, seen in enumerate(computed, start=first):
        expected = reference.run(seen.row)
        yield compare(seen.plain.taps(), expected.taps())
        if seen.after_past is not None:
            last = compare(seen.after_past.taps(), expected.last_position().taps())
            yield {f"past.{tap}": measured for tap, measured in last.items()}
        for trial, logits in zip(tried, seen.changed, strict=True):
            changed = reference.run(seen.row, trial.on_row(number)).logits
            yield {f"{trial.name}.logits": measure(logits, changed, without=expected.logits)}
