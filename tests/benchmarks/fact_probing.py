"""Fact probing on the embedded BLOOM, served, against the loop that a user would write with transformers and hooks.

    python -m tests.benchmarks.fact_probing      writes build/bench/fact_probing.json and prints the table

Both answer the same question about the same groups: types of all neurons, and whether each gold answer stays the most
likely one, teacher-forced, when each of three types and as many random active neurons are deactivated at the last
prompt token. They take turns, so that what else the machine does hits both; the ratio is what counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import neuroglot as ng
from neuroglot.definitions.gold import GoldTokens, gold_tokens
from neuroglot.tasks import capital_prompts as capitals
from neuroglot_exporter import embedded, export

TYPES = (ng.ALL_SHARED, ng.SPECIFIC, ng.PARTIAL_SHARED)


def served(model: ng.Model, groups: Sequence[ng.Group]) -> int:
    """Ask the server; the number of right answers over all variants."""
    variants = {f"w/o {kind.label}": ng.deactivate(kind) for kind in TYPES}
    variants |= {f"control of {kind.label}": ng.deactivate(ng.control(kind)) for kind in TYPES}
    outcomes = model.analyze_many(groups, variants=variants, type_map=False, generate=False)
    return sum(
        row.exact is True for result in outcomes for rows in result.predictions.values() for row in rows.values()
    )


class Hooked:
    """The same with transformers: one pass a variant over a left-padded batch of the group's rows."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.activations: dict[int, torch.Tensor] = {}
        self.masks: dict[int, torch.Tensor] = {}  # [rows, positions, neurons]
        for layer, block in enumerate(self.model.transformer.h):
            block.mlp.gelu_impl.register_forward_hook(partial(self._hook, layer))

    def _hook(self, layer: int, module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        self.activations[layer] = output
        return output * self.masks[layer] if self.masks else output

    @torch.no_grad()
    def __call__(self, groups: Sequence[ng.Group]) -> int:
        """The number of right answers over all variants."""
        generator = np.random.default_rng(0)
        return sum(self._group(group, generator) for group in groups)

    def _group(self, group: ng.Group, generator: np.random.Generator) -> int:
        encode = partial(self.tokenizer.encode, add_special_tokens=False)
        rows = [
            gold_tokens(encode, encode, prompt, group.separators[language], group.answers[language][0])
            for language, prompt in group.prompts.items()
        ]
        width = max(len(row.prompt) + len(row.gold) for row in rows) - 1
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            tokens = torch.tensor(row.prompt + row.gold[:-1])
            ids[i, width - len(tokens) :], mask[i, width - len(tokens) :] = tokens, 1
        last = torch.tensor([width - len(row.gold) for row in rows])
        everyone = torch.arange(len(rows))

        self.masks = {}
        right = self._right(ids, mask, rows)
        active = {layer: values[everyone, last].numpy() > 0 for layer, values in self.activations.items()}
        for kind in TYPES:
            chosen = {layer: self._of_type(kind, found) for layer, found in active.items()}
            for control in (False, True):
                self.masks = {}
                for layer, found in active.items():
                    keep = torch.ones(len(rows), width, found.shape[1])
                    for i in range(len(rows)):
                        neurons = np.flatnonzero(chosen[layer])
                        if control:
                            count = int((chosen[layer] & found[i]).sum())
                            neurons = generator.choice(np.flatnonzero(found[i]), count, replace=False)
                        keep[i, last[i], neurons] = 0
                    self.masks[layer] = keep
                right += self._right(ids, mask, rows)
        return right

    def _right(self, ids: torch.Tensor, mask: torch.Tensor, rows: Sequence[GoldTokens]) -> int:
        longest = max(len(row.gold) for row in rows)
        # The head on the trailing positions only: a user in a hurry would do that, too.
        hidden = self.model.transformer(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden[:, -longest:])
        return sum(
            torch.equal(logits[i, longest - len(row.gold) :].argmax(-1), torch.tensor(row.gold))
            for i, row in enumerate(rows)
        )

    @staticmethod
    def _of_type(kind: ng.NeuronType, active: np.ndarray) -> np.ndarray:
        rows = active.sum(axis=0)
        if kind == ng.ALL_SHARED:
            return rows == len(active)
        return rows == 1 if kind == ng.SPECIFIC else (rows > 1) & (rows < len(active))


def seconds(run: Callable[[], int]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--groups", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--torch-threads", type=int, default=1, help="on models this small more only wait for each other"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.torch_threads)
    groups = list(islice(capitals.groups(), arguments.groups))
    with TemporaryDirectory() as folder:
        export("embedded:bloom", Path(folder) / "bloom")
        with ng.connect(Path(folder) / "bloom") as client:
            ours, theirs = partial(served, client.model(), groups), partial(Hooked(embedded.path("bloom")), groups)
            answers = ours(), theirs()  # a warm-up, too
            pairs = [(seconds(ours), seconds(theirs)) for _ in range(arguments.rounds)]
    result = {
        "groups": len(groups),
        "rows": sum(len(group.prompts) for group in groups),
        "variants": 2 * len(TYPES),
        "served_seconds": statistics.median(one for one, _ in pairs),
        "transformers_seconds": statistics.median(other for _, other in pairs),
        "ratio": statistics.median(other / one for one, other in pairs),
        "right_answers": {"served": answers[0], "transformers": answers[1]},
        "torch_threads": arguments.torch_threads,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "fact_probing.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['groups']} groups, {result['rows']} rows, baseline + {result['variants']} variants, teacher-forced")
    for name in ("served", "transformers"):
        print(
            f"  {name:13} {result[f'{name}_seconds']:6.2f} s   {len(groups) / result[f'{name}_seconds']:6.1f} groups/s"
        )
    print(f"  served is {result['ratio']:.2f} x as fast (median of {arguments.rounds} pairs)")


if __name__ == "__main__":
    main()
