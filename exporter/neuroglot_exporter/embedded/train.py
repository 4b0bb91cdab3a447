"""Train an embedded model: `python -m neuroglot_exporter.embedded.train bloom`.

All random numbers have fixed seeds. After Ctrl-C, the same command resumes from the last stored state.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerFast

from neuroglot_exporter.embedded import MODELS
from neuroglot_exporter.embedded.batches import Batch, Encoder, batches
from neuroglot_exporter.embedded.corpus import TASKS, tokenizer_texts
from neuroglot_exporter.embedded.evaluate import evaluate
from neuroglot_exporter.embedded.family import Family, load

STATES = Path.home() / ".cache" / "neuroglot" / "training"
"""Folder of the states of interrupted trainings."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the number of steps and the learning rate are the family's."""

    steps: int
    learning_rate: float
    seed: int = 20260
    rows: Mapping[str, int] = field(default_factory=lambda: {"facts": 48, "edits": 64, "inferences": 144})
    pool: int = 40  # steps whose rows are drawn and sorted by length together
    warmup: int = 200
    weight_decay: float = 0.05
    clip: float = 1.0


@dataclass
class Meter:
    """Running means of loss and exact match by task, and the rate since the start."""

    steps: int
    first: int
    started: float = field(default_factory=time.monotonic)
    loss: dict[str, float] = field(default_factory=dict)
    exact: dict[str, float] = field(default_factory=dict)

    def add(self, task: str, loss: float, exact: float) -> None:
        """Count one batch."""
        self.loss[task] = 0.95 * self.loss.get(task, loss) + 0.05 * loss
        self.exact[task] = 0.95 * self.exact.get(task, exact) + 0.05 * exact

    def line(self, step: int) -> str:
        """The line to print after a step."""
        rate = (step - self.first) / (time.monotonic() - self.started)
        left = (self.steps - step) / rate
        tasks = "  ".join(f"{task} {self.loss[task]:.3f} {self.exact[task]:4.0%}" for task in TASKS)
        return f"step {step}/{self.steps}  {tasks}  {rate:.1f} steps/s  {left // 60:.0f} min {left % 60:02.0f} s left"


def train(family: Family, recipe: Recipe, folder: Path, state: Path) -> None:
    """Train a model of a family and write the checkpoint.

    Args:
        family: whose tokenizer and shape the model has.
        recipe: steps, rows and rates.
        folder: folder to write the checkpoint to, replacing an existing one.
        state: file of an interrupted training's state.
    """
    torch.manual_seed(recipe.seed)
    tokenizer = family.tokenizer(tokenizer_texts())
    config = family.config(tokenizer)
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model: PreTrainedModel = kind.from_config(config)
    family.prepare(model)
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe.weight_decay), betas=(0.9, 0.98), fused=True)
    first = _resume(state, model, optimizer)
    encoder = Encoder(tokenizer, config.is_encoder_decoder)
    click.echo(f"{family.name}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens, from step {first}")

    meter = Meter(recipe.steps, first)
    try:
        for step, by_task in enumerate(islice(_steps(encoder, recipe, first), recipe.steps - first), first + 1):
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(step, recipe)
            rows = sum(recipe.rows.values())
            for task, batch in by_task.items():
                loss, exact = _loss(model, batch)
                (loss * recipe.rows[task] / rows).backward()
                meter.add(task, loss.item(), exact)
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
            if step % 50 == 0:
                click.echo(meter.line(step))
            if step % (10 * recipe.pool) == 0:
                _keep(state, model, optimizer, step)
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted: the same command resumes from the state in {state}") from None
    _write(model, tokenizer, folder)
    state.unlink(missing_ok=True)


def _steps(encoder: Encoder, recipe: Recipe, first: int) -> Iterator[dict[str, Batch]]:
    """Yield the batches of each step, one a task: every step trains all tasks, and no batch mixes their lengths.

    Endless, pool by pool. Each pool has its own seed, so that a resumed training reads the same batches.
    """
    for pool in count(first // recipe.pool):
        seed = f"{recipe.seed}/{pool}"
        streams = [batches(encoder, task, recipe.rows[task], recipe.pool, seed) for task in TASKS]
        for found in zip(*streams, strict=True):
            yield dict(zip(TASKS, found, strict=True))


def _loss(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, float]:
    """Cross-entropy of the answers' tokens and the share of answers that are right throughout, teacher-forced.

    The head reads only the positions that predict an answer: over all positions it would be most of the cost.
    """
    with torch.autocast("cpu", torch.bfloat16):
        hidden = _last_hidden_state(model, batch.inputs)
        logits = model.get_output_embeddings()(hidden.flatten(0, 1)[batch.positions])
    logits = logits.float()
    wrong = torch.zeros(int(batch.rows[-1]) + 1).index_add_(0, batch.rows, (logits.argmax(-1) != batch.targets).float())
    return nn.functional.cross_entropy(logits, batch.targets), (wrong == 0).float().mean().item()


def _last_hidden_state(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """The head's input, `[rows, positions, hidden]`."""
    if model.config.is_encoder_decoder:
        mask = inputs["attention_mask"]
        encoded = model.get_encoder()(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
        decoder = {"input_ids": inputs["decoder_input_ids"], "encoder_attention_mask": mask}
        output = model.get_decoder()(**decoder, encoder_hidden_states=encoded, use_cache=False)
    else:
        output = model.base_model(**inputs, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden


def _parameter_groups(model: PreTrainedModel, decay: float) -> list[dict[str, object]]:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def _learning_rate(step: int, recipe: Recipe) -> float:
    if step <= recipe.warmup:
        return recipe.learning_rate * step / recipe.warmup
    done = (step - recipe.warmup) / (recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def _keep(state: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, step: int) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    aside = state.with_suffix(".part")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, aside)
    aside.replace(state)


def _resume(state: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> int:
    if not state.exists():
        return 0
    kept = torch.load(state, weights_only=True)
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    return int(kept["step"])


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    model.half().save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    (aside / "model.safetensors").chmod(0o644)  # it is written readable by its owner alone
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)


@click.command()
@click.argument("name", metavar="FAMILY")
@click.option("--steps", type=int, help="Optimizer steps, for a try; by default as many as the family is trained for.")
@click.option("--output", type=click.Path(path_type=Path), default=MODELS, help="The folder of the stored models.")
def main(name: str, steps: int | None, output: Path) -> None:
    """Train the embedded model of FAMILY, measure it and write its card."""
    family = load(name)
    folder = output / name
    train(family, Recipe(steps or family.steps, family.learning_rate), folder, STATES / f"{name}.pt")
    evaluate(folder)


if __name__ == "__main__":
    main()
