"""A model on a server, and the requests it serves: tokenize, analyze, capture, generate, upload, probe."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from neuroglot import arguments
from neuroglot.connection.listening import captured, generated
from neuroglot.connection.resuming import Question, Resuming, Terms
from neuroglot.definitions.probe import Comparison, compare
from neuroglot.errors import InvalidGroupError, InvalidSelectionError, NotFoundError
from neuroglot.request.groups import Group
from neuroglot.request.interventions import Intervention
from neuroglot.request.messages import (
    analysis_message,
    group_message,
    intervention_message,
    neuron_set_message,
    priority_message,
    row_message,
)
from neuroglot.request.neurons import NeuronSet
from neuroglot.request.options import (
    AnalysisOptions,
    ContributionOptions,
    EffectiveScoreOptions,
    Priority,
    Variants,
    as_interventions,
    check_fits,
    require_fit,
    uploads,
)
from neuroglot.request.selections import Uploaded
from neuroglot.results.results import CapturedLayer, GeneratedToken, GroupFailure, GroupResult
from neuroglot.v1 import model_pb2, service_pb2
from neuroglot.v1.probe_pb2 import Probe

if TYPE_CHECKING:
    from neuroglot.connection.connection import Connection

_GROUP = "a neuroglot.Group, Group({'en': 'The capital of France is'})"


class Tokens(NamedTuple):
    """The tokens of a text.

    Attributes:
        ids: token ids.
        tokens: the same tokens as strings, as they stand in the vocabulary.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]


class Model:
    """A model on a server, made by `Client.model`. It is thread-safe.

    All requests are idempotent, and are retried while the server is unavailable, restarting or overloaded: see
    `retry_seconds` of `neuroglot.connect`.

    Attributes:
        info: geometry, identity and limits: the protobuf message `neuroglot.v1.Model`.
    """

    def __init__(self, connection: Connection, info: model_pb2.Model, timeout: float) -> None:
        self.info = info
        self._connection = connection
        self._timeout = timeout

    @property
    def name(self) -> str:
        """The model's name on its server."""
        return self.info.name

    def neuron_set(self, indices: Iterable[tuple[int, int]], component: str | None = None) -> NeuronSet:
        """Make a set of this model's neurons.

        Args:
            indices: pairs (layer, neuron), both counted from 0.
            component: `decoder` or `encoder`; None if the model has only one component.

        Raises:
            InvalidSelectionError: the model has no such component, layer or neuron.
        """
        found = self._component(component)
        return NeuronSet.from_indices(
            indices,
            component=found.name,
            layers=found.layers,
            neurons=found.neurons,
            source=self.info.source,
        )

    def probe(self) -> Probe | None:
        """Get the probe of the model's bundle: a fixed request and the result recorded at export; None without one."""
        request = service_pb2.GetModelRequest(model=self.name, probe=True)
        response = self._connection.call(self._connection.stub.GetModel, request, self._timeout)
        return response.probe if response.HasField("probe") else None

    def check_probe(self, probe: Probe, *, timeout: float | None = None) -> Comparison:
        """Run a probe like any other group, and compare the result with the recorded one.

        The server may serve parts of the result from its caches.

        Args:
            probe: from `Model.probe`, or from a bundle by `neuroglot.definitions.probe.read_probe`.
            timeout: seconds to wait for the result, including retries; None for no limit.

        Raises:
            TypeError: `probe` is not a Probe, or `timeout` is not a number.
            ServerError: the server refused the request, or failed.
        """
        if not isinstance(probe, Probe):
            raise arguments.refuse("probe", probe, "a Probe, as Model.probe gives it")
        limit = arguments.seconds("timeout", timeout)
        request = service_pb2.AnalyzeGroupRequest(model=self.name, group=probe.group, analysis=probe.analysis)
        response = self._connection.call(self._connection.stub.AnalyzeGroup, request, limit)
        return compare(probe, response.result)

    def tokenize(self, texts: Sequence[str], *, special_tokens: bool = True) -> tuple[Tokens, ...]:
        """Tokenize texts with the model's tokenizer.

        Args:
            texts: the texts, tokenized independently; sent in as many requests as the server's limits on their number
                and length require.
            special_tokens: whether to add the special tokens of the tokenizer's post-processor (BOS, `</s>`).

        Returns:
            One `Tokens` for each text, in their order.
        """
        given = arguments.texts("texts", texts, "a list of strings, ['Paris']")
        without_special_tokens = not arguments.flag("special_tokens", special_tokens)
        limits = self.info.limits
        found: list[Tokens] = []
        for part in _parts(given, limits.texts or len(given), limits.texts_bytes or math.inf):
            request = service_pb2.TokenizeRequest(
                model=self.name, texts=part, without_special_tokens=without_special_tokens
            )
            response = self._connection.call(self._connection.stub.Tokenize, request, self._timeout)
            found += [Tokens(tuple(text.ids), tuple(text.tokens)) for text in response.texts]
        return tuple(found)

    def upload(self, neurons: NeuronSet) -> Uploaded:
        """Upload a set of neurons to the server, so that interventions refer to it by name instead of sending it.

        >>> chosen = model.upload(NeuronSet.load("shared.neurons"))      # doctest: +SKIP
        >>> model.analyze(group, variants={"without": deactivate(chosen)})    # doctest: +SKIP

        Returns:
            A selection, for every function that takes one. If the server has dropped the set (a restart, an eviction),
            the client uploads it again.

        Raises:
            InvalidSelectionError: the set belongs to another model.
            ServerError: the server refused the set, or failed.
        """
        if not isinstance(neurons, NeuronSet):
            raise arguments.refuse("neurons", neurons, "a neuroglot.NeuronSet")
        require_fit(neurons, self.info, "an upload")
        request = service_pb2.UploadNeuronSetRequest(model=self.name, neurons=neuron_set_message(neurons))
        response = self._connection.call(self._connection.stub.UploadNeuronSet, request, self._timeout)
        return Uploaded(response.name, neurons)

    def analyze(
        self,
        group: Group,
        *,
        variants: Variants | None = None,
        thresholds: Iterable[float] = (0.0,),
        type_map: bool = True,
        active: bool = False,
        contribution: bool | float | ContributionOptions = False,
        effective_score: bool | EffectiveScoreOptions = False,
        dead: bool = False,
        predict: bool | None = None,
        generate: bool = True,
        max_tokens: int = 0,
        priority: Priority | str | None = None,
        timeout: float | None = None,
    ) -> GroupResult:
        """Analyse one group: types of its neurons, and predictions under every variant.

        Args:
            group: the prompts, and the answers that predictions are scored against.
            variants: by name, the interventions to compare with the baseline, which always runs; one, or a list that
                is applied together.
            thresholds: a neuron is active where its activation exceeds the threshold. Interventions that choose
                neurons by type use the first.
            type_map: return the type of every neuron; counts of types always come.
            active: return which neurons are active in each row, which are dead (with `dead`), and which are top
                contributors (with `contribution`); their counts are returned in any case.
            contribution: return contributions by type. A number is the share of a layer's neurons that count as its top
                contributors (True: 0.05); `ContributionOptions` has more choices.
            effective_score: return effective scores by type; `EffectiveScoreOptions` says of which tokens.
            dead: return how many neurons are inactive at every position of each row's prompt.
            predict: return predictions; None: if the group has answers or choices, or there are variants.
            generate: generate text for each prediction, in addition to scoring the answers.
            max_tokens: maximum number of tokens to generate for a row without an answer; 0: the server's default.
            priority: `interactive` or `bulk`; None for `interactive`.
            timeout: seconds to wait for the answer, including retries; None for no limit.

        Raises:
            TypeError, ValueError: an argument has the wrong type, or is out of range.
            InvalidSelectionError: a neuron set of another model, or a variant without interventions.
            InvalidRequestError: the server rejected the request; `violations` names the fields.
            ServerError: any other failure, see `neuroglot.errors`.
        """
        if not isinstance(group, Group):
            raise arguments.refuse("group", group, _GROUP)
        options = self._options(
            variants=variants,
            thresholds=thresholds,
            type_map=type_map,
            active=active,
            contribution=contribution,
            effective_score=effective_score,
            dead=dead,
            predict=predict,
            generate=generate,
            max_tokens=max_tokens,
        )
        request = service_pb2.AnalyzeGroupRequest(
            model=self.name,
            group=group_message(group, group.id),
            analysis=analysis_message(options, predict=options.predicts(group)),
            priority=priority_message(priority),
        )
        timeout = arguments.seconds("timeout", timeout)
        restore = self._restoring(options.uploads)
        try:
            response = self._connection.call(self._connection.stub.AnalyzeGroup, request, timeout)
        except NotFoundError:
            if restore is None:
                raise
            restore()
            response = self._connection.call(self._connection.stub.AnalyzeGroup, request, timeout)
        return GroupResult(response.result)

    def analyze_many(
        self,
        groups: Iterable[Group],
        *,
        variants: Variants | None = None,
        thresholds: Iterable[float] = (0.0,),
        type_map: bool = True,
        active: bool = False,
        contribution: bool | float | ContributionOptions = False,
        effective_score: bool | EffectiveScoreOptions = False,
        dead: bool = False,
        predict: bool | None = None,
        generate: bool = True,
        max_tokens: int = 0,
        priority: Priority | str | None = None,
        in_flight: int | None = None,
        timeout: float | None = None,
        group_timeout: float | None = None,
    ) -> Generator[GroupResult | GroupFailure, None, None]:
        """Analyse many groups on one stream, and yield the results as they arrive, in any order.

        Groups are consumed lazily in the caller's thread as results arrive, so the iterable may be a generator of any
        length. Nothing is sent before the first result is requested. If the stream breaks, a new one is opened for the
        groups without a result: each group gives exactly one result. Closing or dropping the iterator cancels the
        groups in flight.

        Args:
            groups: each with a unique id; a group with an empty id gets its index in `groups`, from 0, as its id.
            variants: as in `analyze`, like all options of the analysis below.
            thresholds: as in `analyze`.
            type_map: as in `analyze`.
            active: as in `analyze`.
            contribution: as in `analyze`.
            effective_score: as in `analyze`.
            dead: as in `analyze`.
            predict: as in `analyze`; None is decided for each group.
            generate: as in `analyze`.
            max_tokens: as in `analyze`.
            priority: `bulk` or `interactive`; None for `bulk`.
            in_flight: maximum number of groups in flight; None for the server's `limits.groups_in_flight`, which also
                bounds it.
            timeout: seconds that the whole call may take; None for no limit.
            group_timeout: seconds that each group may take from when it is sent; None for no limit. A group that takes
                longer fails.

        Yields:
            A result for each group, or a `GroupFailure` for one that failed; the other groups continue.

        Raises:
            TypeError, ValueError: an argument has the wrong type, or is out of range.
            InvalidGroupError: two groups have the same id.
            InvalidSelectionError: as in `analyze`.
            ModelChangedError: the server now serves another bundle under the model's name.
            ServerError: the stream as a whole failed, and kept failing for `retry_seconds`.
        """
        if not isinstance(groups, Iterable) or isinstance(groups, str | bytes | Mapping):
            raise arguments.refuse("groups", groups, "a list or another iterable of groups")
        if in_flight is not None:
            in_flight = arguments.count("in_flight", in_flight, 1)
        limit = max(1, self.info.limits.groups_in_flight)
        options = self._options(
            variants=variants,
            thresholds=thresholds,
            type_map=type_map,
            active=active,
            contribution=contribution,
            effective_score=effective_score,
            dead=dead,
            predict=predict,
            generate=generate,
            max_tokens=max_tokens,
        )
        terms = Terms(
            model=self.info,
            priority=priority_message(priority),
            in_flight=min(in_flight or limit, limit),
            timeout=arguments.seconds("timeout", timeout),
            group_timeout=arguments.seconds("group_timeout", group_timeout),
            restore=self._restoring(options.uploads),
        )
        return self._answers(terms, groups, options)

    def _answers(
        self, terms: Terms, groups: Iterable[Group], options: AnalysisOptions
    ) -> Generator[GroupResult | GroupFailure, None, None]:
        yield from Resuming(self._connection, terms, _questions(groups, options)).answers()

    def capture(
        self,
        prompt: str | Sequence[int],
        *,
        layers: Iterable[int] | None = None,
        neurons: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        component: str | None = None,
        coefficients: bool = False,
        timeout: float | None = None,
    ) -> Generator[CapturedLayer, None, None]:
        """Stream the raw activations of one prompt, layer by layer. Only a few layers are held in memory at a time.

        >>> layers = model.capture("Paris is", layers=[3], positions=[-1])     # doctest: +SKIP
        >>> {layer.layer: layer.values.shape for layer in layers}              # doctest: +SKIP
        {3: (1, 4096)}

        Args:
            prompt: text, or token ids that are used unchanged.
            layers: layer indices, counted from 0; None for all.
            neurons: neuron indices, in the order of the returned columns; None for all.
            positions: token positions in the prompt, negative ones counted from its end; None for all.
            component: `decoder` or `encoder`; None if the model has only one component.
            coefficients: capture the coefficients that multiply the value vectors instead of the activations. The two
                are the same unless the FFN is gated.
            timeout: seconds for the whole stream; None for no limit.

        Yields:
            Each requested layer once, with values `[positions, neurons]`.

        Raises:
            InvalidGroupError: the prompt is empty.
            InvalidSelectionError: the model has no such component, layer or neuron.
            ModelChangedError: the server now serves another bundle under the model's name.
            ServerError: any other failure.
        """
        found = self._component(component)
        chosen = range(found.layers) if layers is None else _indices("layer", layers, found.layers, found.name)
        columns = None if neurons is None else _indices("neuron", neurons, found.neurons, found.name)
        request = service_pb2.CaptureActivationsRequest(
            model=self.name,
            row=row_message(prompt),
            component=found.name,
            neurons=sorted(set(columns or ())),
            positions=None if positions is None else _positions(positions),
            coefficients=arguments.flag("coefficients", coefficients),
        )
        timeout = arguments.seconds("timeout", timeout)
        return captured(self._connection, request, self.info, sorted(set(chosen)), columns, timeout)

    def generate(
        self,
        prompt: str | Sequence[int],
        interventions: Intervention | Sequence[Intervention] = (),
        *,
        threshold: float = 0.0,
        max_tokens: int = 0,
        past_newlines: bool = False,
        timeout: float | None = None,
    ) -> Generator[GeneratedToken, None, None]:
        """Generate greedily from a prompt, optionally under interventions. Streams one token at a time.

        >>> "".join(token.text for token in model.generate("The capital of France is"))    # doctest: +SKIP
        ' Paris'

        Args:
            prompt: text, or token ids that are used unchanged.
            interventions: one intervention, or several that are applied together. Selections by neuron type are not
                available: a single prompt has no types.
            threshold: a neuron is active where its activation exceeds it; used by interventions that depend on it.
            max_tokens: maximum number of tokens to generate; 0 for the server's default.
            past_newlines: whether to continue after a newline, where generation stops otherwise.
            timeout: seconds for the whole stream; None for no limit.

        Yields:
            The generated tokens, in their order.

        Raises:
            InvalidGroupError: the prompt is empty.
            InvalidSelectionError: a neuron set of another model.
            ServerError: any other failure. The request is retried only before its first token: after a restart the
                continuation could differ.
        """
        applied = as_interventions(interventions, "what to generate under", some=False)
        check_fits(applied, self.info, "what to generate under")
        request = service_pb2.GenerateRequest(
            model=self.name,
            row=row_message(prompt),
            interventions=map(intervention_message, applied),
            threshold=arguments.number("threshold", threshold),
            max_tokens=arguments.count("max_tokens", max_tokens),
            past_newlines=arguments.flag("past_newlines", past_newlines),
        )
        timeout = arguments.seconds("timeout", timeout)
        return generated(self._connection, request, timeout, self._restoring(uploads(applied)))

    def __repr__(self) -> str:
        info = self.info
        components = ", ".join(f"{one.name} {one.layers} x {one.neurons}" for one in info.components)
        return f"<Model {self.name!r} at {self._connection.address}: {info.source}, {components}, {info.dtype}>"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError(
            f"{self!r} cannot be pickled: it holds a connection; connect in each process, neuroglot.connect(ADDRESS)"
        )

    def _component(self, name: str | None) -> model_pb2.Component:
        """Return a component by name; None selects the model's only one."""
        arguments.optional_text("component", name)
        components = {one.name: one for one in self.info.components}
        chosen = name or (next(iter(components)) if len(components) == 1 else "")
        if chosen not in components:
            given = "no component" if name is None else f"the component {name!r}"
            raise InvalidSelectionError(f"{given} was given for {self.name!r}: it has {', '.join(components)}")
        return components[chosen]

    def _options(self, *, variants: Variants | None, **others: Any) -> AnalysisOptions:
        options = AnalysisOptions(variants={} if variants is None else variants, **others)
        options.check_fits(self.info)
        return options

    def _restoring(self, uploaded: Sequence[Uploaded]) -> Callable[[], None] | None:
        """Return a function that uploads the sets again once the server has lost them; None without sets."""

        def restore() -> None:
            for one in uploaded:
                self.upload(one.neurons)

        return restore if uploaded else None


def _questions(groups: Iterable[Group], options: AnalysisOptions) -> Iterator[Question]:
    """Yield a request for each group, each with a unique id."""
    analyses = {predict: analysis_message(options, predict=predict) for predict in (True, False)}
    ids: set[str] = set()
    for index, group in enumerate(groups):
        if not isinstance(group, Group):
            raise arguments.refuse(f"groups[{index}]", group, _GROUP)
        group_id = group.id or str(index)
        if group_id in ids:
            raise InvalidGroupError(
                f"two groups have the id {group_id!r}, and answers come back under it: give each group its own"
            )
        ids.add(group_id)
        yield Question(group_message(group, group_id), analyses[options.predicts(group)])


def _positions(given: Sequence[int]) -> tuple[int, ...]:
    """Check positions in a prompt; the server checks them against the prompt's length."""
    positions = arguments.integers("positions", given, "a list of integers, [-1], or None for all")
    for position in positions:
        if not -(2**31) <= position < 2**31:
            raise ValueError(f"position {position} does not exist: give a position of a token of the prompt")
    return positions


def _indices(what: str, given: Iterable[int], count: int, component: str) -> list[int]:
    """Check that indices exist, and return them in the order given."""
    indices = list(arguments.integers(f"{what}s", given, "a list of integers, [0], or None for all"))
    if not indices:
        raise InvalidSelectionError(f"no {what} of {component!r} was given: give some, or None for all")
    for index in indices:
        if not 0 <= index < count:
            raise InvalidSelectionError(
                f"{what} {index} of {component!r} does not exist: it has {count} (0 to {count - 1})"
            )
    return indices


def _parts(texts: Sequence[str], max_texts: int, max_bytes: float) -> Iterator[list[str]]:
    """Split texts, in order, into chunks within both limits; a text above `max_bytes` is a chunk of its own."""
    part: list[str] = []
    size = 0
    for text in texts:
        length = len(text.encode())
        if part and (len(part) == max_texts or size + length > max_bytes):
            yield part
            part, size = [], 0
        part.append(text)
        size += length
    if part:
        yield part
