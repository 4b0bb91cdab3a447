"""A served model, the interface of the core to the transport."""

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
from neuroglot_server.plan.capture import CaptureRunner
from neuroglot_server.plan.generate import GenerateRunner
from neuroglot_server.plan.group import Planner
from neuroglot_server.plan.measure import Measure
from neuroglot_server.plan.prefill import CausalPrefill, EncoderPrefill
from neuroglot_server.plan.runner import Runner
from neuroglot_server.scheduler.batcher import Batcher
from neuroglot_server.scheduler.budget import Budget, Sizes
from neuroglot_server.scheduler.watchdog import unwatched
from neuroglot_server.scheduler.worker import Worker

_MAX_PROJECTION_BYTES = 2**26
"""Capacity for projections onto tokens: 170 tokens in a model of 24 layers of 4,096 neurons."""
_MAX_UPLOAD_BYTES = 2**26
"""Capacity for uploaded neuron sets of all tenants: a thousand sets of 32 layers of 16,384 neurons."""
_MAX_TENANT_UPLOAD_BYTES = 2**24
"""Capacity for the uploaded neuron sets of one tenant."""
_UPLOADED_BYTES_PER_TOKEN = 2**10
"""This many bytes of an upload are charged like one token that is run."""

_MAX_REASON_LENGTH = 200
"""Characters shown of ONNX Runtime's error when a session does not start."""
_BYTES_PER_TOKEN = 4
_TOKENIZED_SIZE_RATIO = 64
"""Size of a text's tokens, as objects and again in the response, relative to the text."""

_CLOSE_SECONDS = 10.0
"""How long `close` waits for requests to return their results or errors after the last batch."""


class Model:
    """A loaded bundle that serves requests.

    Create one with `load`, on any thread. All other methods must be called on one event loop.

    Attributes:
        description: the model's properties and the limits of its requests.
        probe: the bundle's fixed request and its expected result; None if the bundle has none.
    """

    def __init__(
        self,
        description: ModelDescription,
        probe: Probe | None,
        planner: Planner,
        uncached_planner: Planner,
        capture_runner: CaptureRunner,
        worker: Worker,
        admission: Admission,
    ) -> None:
        """Assemble the parts; use `load` instead."""
        self.description = description
        self.probe = probe
        self._planner = planner
        self._uncached_planner = uncached_planner
        self._text = planner.runner.text
        self._capture_runner = capture_runner
        self._generate_runner = GenerateRunner(planner.runner, planner.measure, planner.kernels, planner.costs)
        self._worker = worker
        self._admission = admission
        self._uploads = Uploads(_MAX_UPLOAD_BYTES, _MAX_TENANT_UPLOAD_BYTES)

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
            name: the name under which it is served.
            settings: the model's settings.
            observer: receives the model's events.
            hang_changed: called on the event loop with True when a pass hangs, and with False when it ends after all.

        Raises:
            BundleError: the bundle is damaged, inconsistent, of another version or of a kind that this server does not
                support, or ONNX Runtime cannot run its graphs.
            InstallationError: no usable ONNX Runtime.
        """
        manifest = open_bundle(folder)
        facts = manifest.model
        start = facts.decoder_start_token_id
        graphs = interfaces(facts)
        norms = check_bundle(folder, manifest)
        tokenizer = TokenizerProcess(folder / TOKENIZER)  # it loads in parallel with the sessions
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
        measure = Measure(
            components=description.components,
            norms=norms,
            projections=Projections(
                ValueMatrices.of_bundle(folder, facts),
                min(settings.cache_bytes, _MAX_PROJECTION_BYTES),
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

        def planner_with(step_cache: StepCache) -> Planner:
            decoder = batchers[DECODER]
            runner = Runner(
                prefill=CausalPrefill(decoder, step_cache, PrefixCounter())
                if start is None
                else EncoderPrefill(batchers[ENCODER], start, step_cache),
                decoder=decoder,
                step_cache=step_cache,
                text=text,
                eos=frozenset(facts.eos_token_ids),
                dtype=np.dtype(facts.dtype),
            )
            return Planner(runner, measure, kernels, costs)

        planner = planner_with(
            StepCache(settings.cache_bytes, observer or Unobserved(), shared=settings.shared_cache),
        )
        uncached_planner = planner_with(StepCache(0, Unobserved(), shared=False))
        admission = Admission(Cost(settings.queue_tokens, settings.queue_bytes), observer)
        capture_runner = CaptureRunner(
            planner.runner, description.components, batchers, budgets, settings.batch_bytes // 4
        )
        return cls(description, probe, planner, uncached_planner, capture_runner, worker, admission)

    @property
    def memory(self) -> Mapping[str, MemoryUse]:
        """Memory held by requests, cache and uploads, by part. Thread-safe."""
        return {
            "queue": self._admission.memory,
            "cache": self._planner.runner.step_cache.memory,
            "uploads": self._uploads.memory,
        }

    async def tokenize(
        self, texts: Sequence[str], caller: Caller = ANYONE, *, special_tokens: bool = True
    ) -> list[TokenizedText]:
        """Tokenize texts into ids and their spelling, with or without the special tokens of the post-processor.

        Charged like a pass over one token for each text and for each four characters.

        Raises:
            InvalidRequest: the total length of the texts exceeds the limit.
            QueueFull: the queue is full.
            CannotTokenize: a text takes too much time or memory.
            ModelClosed: the model was closed meanwhile.
        """
        check_texts(texts)
        size = sum([len(text) for text in texts])
        cost = Cost(len(texts) + size // _BYTES_PER_TOKEN, _TOKENIZED_SIZE_RATIO * size)
        async with self._admission.admit(cost, caller, field="texts"):
            return await self._text.tokenize(texts, caller.tenant, special_tokens=special_tokens)

    async def upload(self, neurons: ByNeuron, caller: Caller = ANYONE) -> str:
        """Store a set of neurons for the caller's tenant, and return the name by which selections refer to it.

        Raises:
            InvalidRequest: the set does not fit this model.
            QueueFull: the queue is full, or the tenant's quota is used up.
        """
        check_neurons(neurons, self.description)
        named = replace(neurons, component=neurons.component or self.description.components[0].name)
        cost = Cost(1 + len(neurons.bits) // _UPLOADED_BYTES_PER_TOKEN, len(neurons.bits))
        async with self._admission.admit(cost, caller, field="neurons"):
            return self._uploads.add(caller.tenant, named)

    def require_room(self, tokens: int, caller: Caller) -> None:
        """Reject a request of at least `tokens` tokens early, before it is converted or tokenized.

        Raises:
            InvalidRequest: the request exceeds the capacity of the empty queue.
            QueueFull: the queue has no capacity for these tokens, and the request does not wait.
        """
        self._admission.require_room(Cost(tokens, 0), caller)

    async def analyze(self, group: Group, analysis: Analysis, caller: Caller = ANYONE) -> GroupResult:
        """Analyse one group: validate, tokenize and plan it, wait for admission, and run it.

        Cancelling the call removes its rows from the queue at once.

        Raises:
            InvalidRequest: fields of the request are wrong.
            UploadNotFound: a selection names neurons that the caller's tenant has not uploaded, or that were evicted.
            QueueFull: the queue is full.
            NotFinite: a row's baseline has activations or logits that are not finite.
            ModelClosed: the model was closed meanwhile.
        """
        analysis = with_uploads(analysis, partial(self._uploads.resolve, caller.tenant))
        check(group, analysis, self.description)
        limit = self.description.limits.tokens_per_row
        rows = await encode_rows(group.rows, analysis.prediction, self._text, limit, caller.tenant)
        cost, shares = self._planner.cost(rows, analysis), self._planner.shares(rows, analysis)
        async with self._admission.admit(cost, caller, shares):
            with self._worker.expecting(caller):
                return await self._planner.run(group.id, rows, analysis, caller)

    async def analyze_uncached(self, group: Group, analysis: Analysis, limits: Limits) -> GroupResult:
        """Analyse a group of the server's own, without caches, admission and charges to a tenant.

        Args:
            group: the group.
            analysis: the options.
            limits: limits of the group, in place of those of callers.

        Raises:
            InvalidRequest: fields of the request are wrong.
            NotFinite: a row's baseline has activations or logits that are not finite.
            ModelClosed: the model was closed meanwhile.
        """
        check(group, analysis, replace(self.description, limits=limits))
        limit = limits.tokens_per_row
        rows = await encode_rows(group.rows, analysis.prediction, self._text, limit, ANYONE.tenant)
        with self._worker.expecting(ANYONE):
            return await self._uncached_planner.run(group.id, rows, analysis, ANYONE)

    async def capture(self, row: Row, capture: Capture, caller: Caller = ANYONE) -> AsyncGenerator[CapturedLayer, None]:
        """Yield raw activations of a row's prompt layer by layer; the row's answers are ignored.

        Positions refer to the prompt. The decoder of an encoder-decoder has one position, its start token.

        Raises:
            InvalidRequest: fields of the request are wrong.
            QueueFull: the queue is full.
            NotFinite: activations are not finite.
            ModelClosed: the model was closed meanwhile.
        """
        check_capture(row, capture, self.description)
        limit = self.description.limits.tokens_per_row
        prompt = await encode_prompt(row, None, self._text, limit, caller.tenant)
        plan = self._capture_runner.plan(prompt, capture)
        async with self._admission.admit(plan.cost, caller, field="row"):
            with self._worker.expecting(caller):
                async with aclosing(self._capture_runner.layers(plan, caller)) as layers:
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
        """Generate greedily from a row's prompt, and yield each token; the row's answers are ignored.

        Args:
            row: the prompt.
            interventions: interventions that act together.
            threshold: activation above which a neuron is active, for selections that depend on it.
            max_tokens: how many tokens to generate at most; EOS ends generation earlier, and is not yielded.
            past_newlines: whether to continue after a newline.
            caller: the tenant and priority of the request.

        Raises:
            InvalidRequest: fields of the request are wrong.
            UploadNotFound: a selection names neurons that the caller's tenant has not uploaded, or that were evicted.
            QueueFull: the queue is full.
            NotFinite: activations or logits are not finite.
            ModelClosed: the model was closed meanwhile.
        """
        interventions = interventions_with_uploads(interventions, partial(self._uploads.resolve, caller.tenant))
        check_generation(row, interventions, threshold, max_tokens, self.description)
        prediction = Prediction(generate=True, max_tokens=max_tokens)
        limit = self.description.limits.tokens_per_row
        prompt = await encode_prompt(row, prediction, self._text, limit, caller.tenant)
        plan = generate.GeneratePlan(prompt, interventions, threshold, max_tokens, past_newlines)
        cost = self._generate_runner.cost(plan)
        async with self._admission.admit(cost, caller, field="row"):
            with self._worker.expecting(caller):
                async with aclosing(self._generate_runner.tokens(plan, caller)) as tokens:
                    async for token in tokens:
                        yield token

    @property
    def hung(self) -> bool:
        """Whether a pass has been running for longer than `Settings.hang_seconds`."""
        return self._worker.hung

    def drain(self) -> None:
        """Refuse new requests and queued ones that have not started; the others are completed."""
        self._admission.drain()
        self._worker.drain()

    async def close(self) -> None:
        """Fail queued requests, and return once the running batch has ended, at the latest after half a minute."""
        self._admission.drain()
        await self._text.close()
        await self._worker.close()
        await self._admission.emptied(_CLOSE_SECONDS)
        self._planner.kernels.close()


def _budget(engine: Engine, decoder: Engine, settings: Settings) -> Budget:
    sizes = Sizes.of(engine.signature, decoder.signature, prepacked=engine.prepacked)
    return Budget(settings.batch_tokens, settings.batch_bytes, sizes)


def _engine(folder: Path, component: Component, interface: Interface, facts: ModelFacts, settings: Settings) -> Engine:
    """Start a component's session.

    Raises:
        BundleError: ONNX Runtime cannot run the graph, or the graph disagrees with the manifest.
        InstallationError: no usable ONNX Runtime.
    """
    graph = folder / component.graph
    try:
        engine = Engine(graph, component, interface, settings.threads, settings.device)
    except NeuroglotError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no other common base class
        reason = " ".join(str(error).split())[:_MAX_REASON_LENGTH]
        raise BundleError(f"ONNX Runtime cannot run {graph} ({reason}): export the model again") from error
    check_facts(graph, engine.signature, facts)
    return engine
