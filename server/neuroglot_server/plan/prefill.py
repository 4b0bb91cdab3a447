"""Prefill: runs prompts up to the token from which their answers begin.

A causal model prefills a prompt's tokens except the last, and the answer begins from the last one; without
interventions both are one pass. The encoder of an encoder-decoder runs the whole prompt, and the answer begins from the
decoder's start token. For the decoder of an encoder-decoder, the start token counts as the last prompt token:
interventions of any scope act there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from neuroglot_server.cache.prefix_cache import Prefix, PrefixAndAnswer, PrefixCounter, joined
from neuroglot_server.cache.step_cache import CachedStep, Link, StepCache, WholeStep
from neuroglot_server.core import DECODER, ENCODER, Caller, Intervention
from neuroglot_server.engine.steps import BLOCK, RowStep
from neuroglot_server.intake.text import EncodedRow
from neuroglot_server.neurons.interventions import RowEdits
from neuroglot_server.plan.rows import RowRun
from neuroglot_server.scheduler.batcher import Batcher, Timing


class Prefill(Protocol):
    """What differs between causal models and encoder-decoders: everything before the answer."""

    def start_token(self, row: EncodedRow) -> int:
        """The token from which a row's answer begins."""

    def may_rerun(self, intervention: Intervention) -> bool:
        """Whether an intervention may act in the prefill, so that prompts must be prefilled again under it."""

    def must_rerun(self, edits: RowEdits) -> bool:
        """Whether a row's edits do act in the prefill."""

    def is_fused(self, run: RowRun) -> bool:
        """Whether the first step of a row run's answer includes its prefill."""

    def links(self, row: EncodedRow) -> Sequence[Link]:
        """The cache entries of a prompt's prefill without interventions."""

    def first_steps(
        self, runs: Sequence[RowRun], steps: Sequence[RowStep], caller: Caller, *, forks: bool
    ) -> list[CachedStep]:
        """Build the first step of each answer, with the prefill where the two are fused.

        Args:
            runs: row runs of one group.
            steps: the step of each answer, starting with the token from which it begins.
            caller: the tenant of the request.
            forks: whether further steps fork from the prompts. If so, all results of a step but the last one are
                blocks of its prompt.
        """

    async def run(
        self, runs: Sequence[RowRun], timing: Timing, caller: Caller, thresholds: tuple[float, ...] = ()
    ) -> None:
        """Prefill the prompts of row runs, as far as they are not cached.

        Args:
            runs: baselines, or row runs whose edits act in the prefill. Their `past` or `cross` is set, and an
                encoder's result.
            timing: the time spent waiting and computing is added to it.
            caller: the tenant and priority of the request.
            thresholds: for dead neurons: the thresholds to compare each neuron with at every prefilled token. If there
                are any, `ever` of the row runs is set, and the cache is not used.

        Raises:
            ModelClosed: the model was closed meanwhile.
        """


@dataclass(frozen=True, eq=False)
class CausalPrefill:
    """Prefill of a causal model; no activations are returned from it.

    Attributes:
        decoder: runs steps of the decoder.
        step_cache: caches blocks of prompts and their answers' first steps.
        prefix_counter: counts the prefixes of recent prompts.
    """

    decoder: Batcher
    step_cache: StepCache
    prefix_counter: PrefixCounter

    def start_token(self, row: EncodedRow) -> int:
        """The prompt's last token."""
        return row.prompt[-1]

    def may_rerun(self, intervention: Intervention) -> bool:
        """Whether its scope includes tokens before the last prompt token."""
        return intervention.scope.before_last

    def must_rerun(self, edits: RowEdits) -> bool:
        """Whether there are edits before the last prompt token."""
        return edits.of(DECODER).before is not None

    def is_fused(self, run: RowRun) -> bool:
        """Without interventions, unless the prompt has been prefilled."""
        return not run.edits.anywhere and not run.past.length

    def links(self, row: EncodedRow) -> Sequence[Link]:
        """Blocks of all tokens but the last."""
        return Prefix(row.prompt[:-1]).links

    def first_steps(
        self, runs: Sequence[RowRun], steps: Sequence[RowStep], caller: Caller, *, forks: bool
    ) -> list[CachedStep]:
        """Build the first step of each answer, with the prompt in the same pass.

        With forks, keys and values of the whole prompt are cached. Without, those of a prefix that other prompts had
        too, if it is at least half of the prompt.
        """
        prompts = [run.row.prompt for run in runs]
        ends = [len(prompt) - 1 for prompt in prompts] if forks else self._shared_prefixes(prompts, caller)
        built: list[CachedStep] = []
        for run, prompt, step, end in zip(runs, prompts, steps, ends, strict=True):
            if not self.is_fused(run):
                built.append(WholeStep(DECODER, run.prompt, step))
            elif end:
                answer = WholeStep(DECODER, run.prompt, step)
                built.append(PrefixAndAnswer(Prefix(prompt[:end]), prompt[end:-1], answer))
            else:
                whole = step._replace(tokens=prompt[:-1] + step.tokens, focus=len(prompt) - 1)
                built.append(WholeStep(DECODER, run.prompt, whole, cache="prefix"))
        return built

    async def run(
        self, runs: Sequence[RowRun], timing: Timing, caller: Caller, thresholds: tuple[float, ...] = ()
    ) -> None:
        """Prefill all prompt tokens but the last, as far as they are not cached."""
        longer = [run for run in runs if len(run.row.prompt) > 1]
        steps = [self._step(run, thresholds) for run in longer]
        for run, results in zip(longer, await self.step_cache.run(steps, self.decoder, timing, caller), strict=True):
            if results[-1].finite:
                run.past, run.blocks = joined(results), results
            else:  # only activations compared with thresholds are checked here: the caller refuses the baseline
                run.results[DECODER] = results[-1]
            if results[-1].ever is not None:
                run.ever[DECODER] = results[-1].ever

    def _shared_prefixes(self, prompts: Sequence[tuple[int, ...]], caller: Caller) -> list[int]:
        """Length of the prefix of each prompt to cache by itself, in tokens; 0 if its answer's first step is cached."""
        if not self.step_cache.enabled or max(map(len, prompts)) <= BLOCK:
            return [0] * len(prompts)
        tenant = self.step_cache.tenant_of(caller)
        keys = [self.prefix_counter.keys(Prefix(prompt[:-1]), tenant) for prompt in prompts]
        for of_prompt in keys:
            self.prefix_counter.add(of_prompt)
        ends = []
        for prompt, of_prompt in zip(prompts, keys, strict=True):
            shared = self.prefix_counter.shared_tokens(of_prompt)
            worth_it = 2 * shared >= len(prompt) and not self._is_answer_cached(prompt, caller)
            ends.append(shared if worth_it else 0)
        return ends

    def _is_answer_cached(self, prompt: tuple[int, ...], caller: Caller) -> bool:
        """Whether the result at the prompt's last token is cached."""
        return self.step_cache.contains(WholeStep(DECODER, prompt, RowStep(prompt[-1:], taps=True)), caller)

    def _step(self, run: RowRun, thresholds: tuple[float, ...]) -> CachedStep:
        prompt = run.row.prompt
        if not thresholds and not self.must_rerun(run.edits):
            return Prefix(prompt[:-1])
        edits = run.edits.of(DECODER)
        step = RowStep(prompt[:-1], focus=len(prompt) - 1, edits=edits, thresholds=thresholds, keep=True)
        return WholeStep(DECODER, None, step)


@dataclass(frozen=True, eq=False)
class EncoderPrefill:
    """Prefill of an encoder-decoder: the encoder's pass over the prompt.

    Attributes:
        encoder: runs steps of the encoder.
        decoder_start: the decoder's start token.
        step_cache: caches encoded prompts.
    """

    encoder: Batcher
    decoder_start: int
    step_cache: StepCache

    def start_token(self, row: EncodedRow) -> int:
        """The decoder's start token, the same for all rows."""
        return self.decoder_start

    def may_rerun(self, intervention: Intervention) -> bool:
        """Whether it may act in the encoder."""
        return intervention.component in ("", ENCODER)

    def must_rerun(self, edits: RowEdits) -> bool:
        """Whether there are edits in the encoder."""
        return edits.of(ENCODER).anywhere

    def is_fused(self, run: RowRun) -> bool:
        """Never: the encoder and the decoder are two components."""
        return False

    def links(self, row: EncodedRow) -> Sequence[Link]:
        """The whole prompt, as one link."""
        return self._step(RowRun(row), ()).links

    def first_steps(
        self, runs: Sequence[RowRun], steps: Sequence[RowStep], caller: Caller, *, forks: bool
    ) -> list[CachedStep]:
        """Build the first step of each answer, over the encoded prompts."""
        return [WholeStep(DECODER, run.prompt, step) for run, step in zip(runs, steps, strict=True)]

    async def run(
        self, runs: Sequence[RowRun], timing: Timing, caller: Caller, thresholds: tuple[float, ...] = ()
    ) -> None:
        """Encode the whole prompts that are not cached."""
        steps = [self._step(run, thresholds) for run in runs]
        for run, (result,) in zip(runs, await self.step_cache.run(steps, self.encoder, timing, caller), strict=True):
            run.results[ENCODER] = result
            if result.ever is not None:
                run.ever[ENCODER] = result.ever
            if result.kept is not None:  # None if activations are not finite: the caller refuses the baseline
                run.cross = result.kept

    def _step(self, run: RowRun, thresholds: tuple[float, ...]) -> CachedStep:
        prompt, edits = run.row.prompt, run.edits.of(ENCODER)
        cacheable = not thresholds and not edits.anywhere
        step = RowStep(
            prompt, focus=len(prompt) - 1, edits=edits, taps=not edits.anywhere, thresholds=thresholds, keep=True
        )
        return WholeStep(ENCODER, prompt if cacheable else None, step)
