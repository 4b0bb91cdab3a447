"""A served model: the one thing that a transport speaks to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from neuroglot.definitions.bundle import TOKENIZER, Component, ModelFacts, open_bundle
from neuroglot.definitions.probe import read_probe
from neuroglot.errors import BundleError, NeuroglotError
from neuroglot.v1.probe_pb2 import Probe
from neuroglot_server.cache.prefix_cache import PrefixCounter
from neuroglot_server.cache.step_cache import StepCache
from neuroglot_server.core import (
    ANYONE,
    DECODER,
    ENCODER,
    Analysis,
    ByNeuron,
    Caller,
    Capture,
    CapturedLayer,
    GeneratedToken,
    Group,
    GroupResult,
    Intervention,
    Limits,
    MemoryUse,
    ModelDescription,
    Observer,
    Prediction,
    Row,
    Settings,
    TokenizedText,
    Unobserved,
)
from neuroglot_server.engine.graph import Interface, check_facts, interfaces
from neuroglot_server.engine.session import Engine
from neuroglot_server.intake.admission import Admission, Cost
from neuroglot_server.intake.costs import Costs
from neuroglot_server.intake.encoding import encode_prompt, encode_rows
from neuroglot_server.intake.text import Text
from neuroglot_server.intake.tokenizer_process import TokenizerProcess
from neuroglot_server.intake.uploads import Uploads, interventions_with_uploads, with_uploads
from neuroglot_server.intake.validation import (
    check,
    check_capture,
    check_generation,
    check_neurons,
    check_texts,
)
from neuroglot_server.kernels.kernel_thread import KernelThread
from neuroglot_server.models.bundle_checks import check_bundle
from neuroglot_server.models.model_info import describe
from neuroglot_server.neurons.value_matrices import Projections, ValueMatrices
from neuroglot_server.plan import generate
from neuroglot_server.plan.capture import Capturing
from neuroglot_server.plan.generate import Continuing
from neuroglot_server.plan.group import Planner
from neuroglot_server.plan.measure import Comparison
from neuroglot_server.plan.prefill import Encode, Prefill
from neuroglot_server.plan.runner import Runner
from neuroglot_server.scheduler.batcher import Batcher
from neuroglot_server.scheduler.budget import Budget, Sizes
from neuroglot_server.scheduler.watchdog import unwatched
from neuroglot_server.scheduler.worker import Worker

_MOST_PROJECTION_BYTES = 2**26
"""Most that projections onto tokens take up: those of 170 tokens in a model of 24 layers of 4,096 neurons."""
_MOST_UPLOAD_BYTES = 2**26
"""Most that the uploaded sets of neurons of all tenants take up: a thousand, of 32 layers of 16,384 neurons."""
_TENANTS_UPLOAD_BYTES = 2**24
"""Most that those of one tenant take up."""
_UPLOADED_BYTES_A_TOKEN = 2**10
"""An upload is charged as so many bytes of it were a token that is run."""

_LONGEST_REASON = 200
"""Of what ONNX Runtime says when a session does not start, in characters."""
_BYTES_A_TOKEN = 4
_TIMES_SPELLED = 64
"""How much more than a text its tokens take up, each an object, and in the answer again."""

_LAST_WORDS_SECONDS = 10.0
"""How long requests have to leave the house once nothing runs any more."""


class Model:
    """A bundle that is loaded and runs.

    `load` makes one, on any thread; everything else happens on one event loop.

    Attributes:
        description: what it is and what may be asked of it.
        probe: the fixed request of its bundle and the expected answer; None where the bundle has none.
    """

    def __init__(
        self,
        description: ModelDescription,
        probe: Probe | None,
        planner: Planner,
        uncached_planner: Planner,
        capturing: Capturing,
        worker: Worker,
        admission: Admission,
    ) -> None:
        """Put the parts together; see `load`."""
        self.description = description
        self.probe = probe
        self._planner = planner
        self._uncached_planner = uncached_planner
        self._text = planner.answering.text
        self._capturing = capturing
        self._continuing = Continuing(planner.answering, planner.comparison, planner.kernels, planner.costs)
        self._worker = worker
        self._admission = admission
        self._uploads = Uploads(_MOST_UPLOAD_BYTES, _TENANTS_UPLOAD_BYTES)

    @classmethod
    def load(
        cls,
        folder: Path,
        name: str,
        settings: Settings,
        observer: Observer | None = None,
        hang_changed: Callable[[bool], None] = unwatched,
    ) -> Model:
        """Read a bundle and start its sessions.

        Args:
            folder: the bundle.
            name: what it is asked for by.
            settings: how it is run.
            observer: is told what the model does.
            hang_changed: is called with True when a pass hangs, and with False when it has ended after all, on the
                event loop.

        Raises:
            BundleError: the bundle is damaged, contradicts itself, is of another version or of a kind that this server
                does not run, or ONNX Runtime cannot run its graphs.
            InstallationError: no usable ONNX Runtime.
        """
        manifest = open_bundle(folder)
        facts = manifest.model
        start = facts.decoder_start_token_id
        graphs = interfaces(facts)
        norms = check_bundle(folder, manifest)
        tokenizer = TokenizerProcess(folder / TOKENIZER)  # which loads while the sessions do
        engines = {
            component.name: _engine(folder, component, graphs[component.name], facts, settings)
            for component in facts.components
        }
        text = Text.of(tokenizer, encoder_decoder=start is not None, vocabulary_size=facts.vocabulary_size)
        worker = Worker(observer, settings.hang_seconds, hang_changed)
        budgets = {name: _budget(engine, engines[DECODER], settings) for name, engine in engines.items()}
        batchers = {
            name: Batcher(engine.run, budgets[name], worker, name, engine.stop) for name, engine in engines.items()
        }
        description = describe(manifest, settings, name, budgets)
        probe = read_probe(folder, manifest)
        comparison = Comparison(
            components=description.components,
            norms=norms,
            projections=Projections(
                ValueMatrices.of_bundle(folder, facts),
                min(settings.cache_bytes, _MOST_PROJECTION_BYTES),
                shared=settings.shared_cache,
            ),
            dtype=np.dtype(facts.dtype),
        )
        kernels = KernelThread()
        costs = Costs(
            [budget.sizes for budget in budgets.values()],
            settings.queue_bytes,
            settings.batch_bytes // 4,
            description.components,
        )

        def planner_with(sharing: StepCache) -> Planner:
            decoder = batchers[DECODER]
            answering = Runner(
                reader=Prefill(decoder, sharing, PrefixCounter())
                if start is None
                else Encode(batchers[ENCODER], start, sharing),
                decoder=decoder,
                sharing=sharing,
                text=text,
                eos=frozenset(facts.eos_token_ids),
                dtype=np.dtype(facts.dtype),
            )
            return Planner(answering, comparison, kernels, costs)

        planner = planner_with(
            StepCache(settings.cache_bytes, observer or Unobserved(), shared=settings.shared_cache),
        )
        uncached_planner = planner_with(StepCache(0, Unobserved(), shared=False))
        admission = Admission(Cost(settings.queue_tokens, settings.queue_bytes), observer)
        capturing = Capturing(planner.answering, description.components, batchers, budgets, settings.batch_bytes // 4)
        return cls(description, probe, planner, uncached_planner, capturing, worker, admission)

    @property
    def memory(self) -> Mapping[str, MemoryUse]:
        """What its requests, its cache and its uploads hold, by part; may be read on any thread."""
        return {
            "queue": self._admission.memory,
            "cache": self._planner.answering.sharing.memory,
            "uploads": self._uploads.memory,
        }

    async def tokenize(
        self, texts: Sequence[str], caller: Caller = ANYONE, *, special_tokens: bool = True
    ) -> list[TokenizedText]:
        """Ids and spelling of the tokens of each text, with what the tokenizer's post-processor adds or without.

        It is charged as if a pass had run over a quarter of the texts' bytes.

        Raises:
            InvalidRequest: the texts are too long together.
            QueueFull: too much is waiting.
            CannotTokenize: a text takes too much time or memory.
            ModelClosed: the model went down meanwhile.
        """
        check_texts(texts)
        size = sum([len(text) for text in texts])
        cost = Cost(len(texts) + size // _BYTES_A_TOKEN, _TIMES_SPELLED * size)
        async with self._admission.admit(cost, caller, field="texts"):
            return await self._text.tokenize(texts, caller.tenant, special_tokens=special_tokens)

    async def upload(self, neurons: ByNeuron, caller: Caller = ANYONE) -> str:
        """Keep a set of neurons for the caller's tenant; selections find it by the name that comes back.

        Raises:
            InvalidRequest: the set is none of this model.
            QueueFull: too much is waiting, or the tenant's quota is used up.
        """
        check_neurons(neurons, self.description)
        named = replace(neurons, component=neurons.component or self.description.components[0].name)
        cost = Cost(1 + len(neurons.bits) // _UPLOADED_BYTES_A_TOKEN, len(neurons.bits))
        async with self._admission.admit(cost, caller, field="neurons"):
            return self._uploads.add(caller.tenant, named)

    def require_room(self, tokens: int, caller: Caller) -> None:
        """Refuse a request that will be charged so many tokens at least, before it is converted or tokenized.

        Raises:
            InvalidRequest: it could never be admitted.
            QueueFull: there is no room for so many tokens, and the request does not wait.
        """
        self._admission.require_room(Cost(tokens, 0), caller)

    async def analyze(self, group: Group, analysis: Analysis, caller: Caller = ANYONE) -> GroupResult:
        """Analyse one group: validate, tokenize and plan it once, then wait for its admission and run it.

        A caller that is cancelled takes its rows out of the queue at once.

        Raises:
            InvalidRequest: fields of the request are wrong.
            UploadNotFound: a selection names neurons that the caller's tenant has not uploaded, or that were dropped.
            QueueFull: too much is waiting.
            NotFinite: a row's baseline has activations or logits that are not finite.
            ModelClosed: the model went down meanwhile.
        """
        analysis = with_uploads(analysis, partial(self._uploads.resolve, caller.tenant))
        check(group, analysis, self.description)
        most = self.description.limits.tokens_per_row
        rows = await encode_rows(group.rows, analysis.prediction, self._text, most, caller.tenant)
        cost, shares = self._planner.cost(rows, analysis), self._planner.shares(rows, analysis)
        async with self._admission.admit(cost, caller, shares):
            with self._worker.expecting(caller):
                return await self._planner.run(group.id, rows, analysis, caller)

    async def analyze_uncached(self, group: Group, analysis: Analysis, limits: Limits) -> GroupResult:
        """Analyse a group of the server's own: nothing of it is taken from a cache or kept, and no tenant is charged.

        Args:
            group: the group.
            analysis: what is wanted of it.
            limits: what the group may ask for, in place of those for callers.

        Raises:
            InvalidRequest: fields of the request are wrong.
            NotFinite: a row's baseline has activations or logits that are not finite.
            ModelClosed: the model went down meanwhile.
        """
        check(group, analysis, replace(self.description, limits=limits))
        most = limits.tokens_per_row
        rows = await encode_rows(group.rows, analysis.prediction, self._text, most, ANYONE.tenant)
        with self._worker.expecting(ANYONE):
            return await self._uncached_planner.run(group.id, rows, analysis, ANYONE)

    async def capture(self, row: Row, capture: Capture, caller: Caller = ANYONE) -> AsyncGenerator[CapturedLayer, None]:
        """Raw activations of a row's prompt, layer by layer; its answers are not looked at.

        Positions are the prompt's; the decoder of an encoder-decoder has one, its start token.

        Raises:
            InvalidRequest: fields of the request are wrong.
            QueueFull: too much is waiting.
            NotFinite: activations are not finite.
            ModelClosed: the model went down meanwhile.
        """
        check_capture(row, capture, self.description)
        most = self.description.limits.tokens_per_row
        prompt = await encode_prompt(row, None, self._text, most, caller.tenant)
        wish = self._capturing.wish(prompt, capture)
        async with self._admission.admit(wish.cost, caller, field="row"):
            with self._worker.expecting(caller):
                async with aclosing(self._capturing.layers(wish, caller)) as layers:
                    async for layer in layers:
                        yield layer

    async def generate(
        self,
        row: Row,
        interventions: tuple[Intervention, ...],
        threshold: float,
        max_tokens: int,
        past_newlines: bool,
        caller: Caller = ANYONE,
    ) -> AsyncGenerator[GeneratedToken, None]:
        """Go on from a row's prompt greedily, token by token; its answers are not looked at.

        Args:
            row: the prompt.
            interventions: that act together.
            threshold: above which a neuron is active, where they ask.
            max_tokens: how many tokens to go on for at most; EOS ends it earlier, and is not given.
            past_newlines: whether to go on after a newline.
            caller: who asks.

        Raises:
            InvalidRequest: fields of the request are wrong.
            UploadNotFound: a selection names neurons that the caller's tenant has not uploaded, or that were dropped.
            QueueFull: too much is waiting.
            NotFinite: activations or logits are not finite.
            ModelClosed: the model went down meanwhile.
        """
        interventions = interventions_with_uploads(interventions, partial(self._uploads.resolve, caller.tenant))
        check_generation(row, interventions, threshold, max_tokens, self.description)
        prediction = Prediction(generate=True, max_tokens=max_tokens)
        most = self.description.limits.tokens_per_row
        prompt = await encode_prompt(row, prediction, self._text, most, caller.tenant)
        wish = generate.Wish(prompt, interventions, threshold, max_tokens, past_newlines)
        cost = self._continuing.cost(wish)
        async with self._admission.admit(cost, caller, field="row"):
            with self._worker.expecting(caller):
                async with aclosing(self._continuing.tokens(wish, caller)) as tokens:
                    async for token in tokens:
                        yield token

    @property
    def hung(self) -> bool:
        """Whether a pass has been running for longer than `Settings.hang_seconds`."""
        return self._worker.hung

    def drain(self) -> None:
        """Refuse requests of which nothing has run yet, those that wait and those to come; the others go on."""
        self._admission.drain()
        self._worker.drain()

    async def close(self) -> None:
        """Fail what waits, and come back when the running batch is done, or at the latest after half a minute."""
        self._admission.drain()
        await self._text.close()
        await self._worker.close()
        await self._admission.emptied(_LAST_WORDS_SECONDS)
        self._planner.kernels.close()


def _budget(engine: Engine, decoder: Engine, settings: Settings) -> Budget:
    sizes = Sizes.of(engine.signature, decoder.signature, prepacked=engine.prepacked)
    return Budget(settings.batch_tokens, settings.batch_bytes, sizes)


def _engine(folder: Path, component: Component, interface: Interface, facts: ModelFacts, settings: Settings) -> Engine:
    """Start a component's session.

    Raises:
        BundleError: ONNX Runtime cannot run the graph, or it is not what the manifest says.
        InstallationError: no usable ONNX Runtime.
    """
    graph = folder / component.graph
    try:
        engine = Engine(graph, component, interface, settings.threads, settings.device)
    except NeuroglotError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no class in common but this one
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise BundleError(f"ONNX Runtime cannot run {graph} ({reason}): export the model again") from error
    check_facts(graph, engine.signature, facts)
    return engine
