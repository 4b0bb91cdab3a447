"""A model on a server: what can be asked of it."""

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
        tokens: the same tokens as the vocabulary spells them.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]


class Model:
    """A model on a server; `Client.model` gives one. Many threads may use it at once.

    All that it asks are pure questions, and they are asked again when the server is away for a while, was restarted, or
    is full: see `retry_seconds` of `neuroglot.connect`.

    Attributes:
        info: geometry, identity and limits, as the contract's `neuroglot.v1.Model` has them.
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
        """A set of this model's neurons.

        Args:
            indices: pairs (layer, neuron), both counted from 0.
            component: `decoder` or `encoder`; None for the only one.

        Raises:
            InvalidSelectionError: a component, a layer or a neuron that the model does not have.
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
        """The fixed request of the model's bundle and what the export recorded for it; None where it has none."""
        request = service_pb2.GetModelRequest(model=self.name, probe=True)
        response = self._connection.call(self._connection.stub.GetModel, request, self._timeout)
        return response.probe if response.HasField("probe") else None

    def check_probe(self, probe: Probe, *, timeout: float | None = None) -> Comparison:
        """Ask a probe, as any group is asked, and compare the answer with what was recorded.

        The server may have parts of the answer in its caches, from an earlier time.

        Args:
            probe: from `Model.probe`, or of the bundle, from `neuroglot.definitions.probe.read_probe`.
            timeout: seconds to wait for the answer; None for ever.

        Raises:
            TypeError: the probe is none, or the timeout no number.
            ServerError: the server refused the request, or failed.
        """
        if not isinstance(probe, Probe):
            raise arguments.refuse("probe", probe, "a Probe, as Model.probe gives it")
        limit = arguments.seconds("timeout", timeout)
        request = service_pb2.AnalyzeGroupRequest(model=self.name, group=probe.group, analysis=probe.analysis)
        response = self._connection.call(self._connection.stub.AnalyzeGroup, request, limit)
        return compare(probe, response.result)

    def tokenize(self, texts: Sequence[str], *, special_tokens: bool = True) -> tuple[Tokens, ...]:
        """The tokens of texts, as the model's own tokenizer gives them.

        Args:
            texts: each is tokenized by itself; the server is asked as often as their number and length take.
            special_tokens: whether to add what the tokenizer's post-processor adds (BOS, `</s>`).
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
        """Have the server keep a set of neurons, so that interventions on it need not carry it each time.

        >>> chosen = model.upload(NeuronSet.load("shared.neurons"))      # doctest: +SKIP
        >>> model.analyze(group, variants={"without": deactivate(chosen)})    # doctest: +SKIP

        Returns:
            What every function that takes a selection takes. Where the server has lost the set, it is uploaded again.

        Raises:
            InvalidSelectionError: the set is another model's.
            ServerError: the server refused it.
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
            active: return which neurons are active in each row, which are dead if `dead` is set, and which contribute
                most if `contribution` is; counts come without it.
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
            TypeError, ValueError: an argument of another kind, or out of its range.
            InvalidSelectionError: a neuron set of another model, or a variant without interventions.
            InvalidRequestError: what the server does not accept; `violations` names the fields.
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
        """Analyse many groups on one stream, and yield the answers as they come, in any order.

        Groups are taken as answers arrive, in the caller's thread, so there may be any number of them, made on the
        way. Nothing is sent before the first answer is asked for. A stream that breaks is followed by another one,
        which asks what is unanswered: each group is answered once. Closing the iterator, or leaving it behind, cancels
        what is under way; answers that were yielded are kept.

        Args:
            groups: each with its own id; one with an empty id gets its place among them, from 0, as its id.
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
            A result, or a `GroupFailure` for a group that the server could not analyse: the others go on.

        Raises:
            TypeError, ValueError: an argument of another kind, or out of its range.
            InvalidGroupError: two groups have the same id.
            InvalidSelectionError: as in `analyze`.
            ModelChangedError: the server has another bundle under the model's name by now.
            ServerError: the stream as a whole failed, and did so for as long as retries go on.
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
        """Raw activations of one prompt, layer by layer, as they come: no more than a few layers are held at a time.

        >>> layers = model.capture("Paris is", layers=[3], positions=[-1])     # doctest: +SKIP
        >>> {layer.layer: layer.values.shape for layer in layers}              # doctest: +SKIP
        {3: (1, 4096)}

        Args:
            prompt: text, or token ids that are taken as they are.
            layers: which, counted from 0; None for all.
            neurons: which, in the order that the columns shall have; None for all.
            positions: which of the prompt's tokens, negative ones counted from its end; None for all.
            component: `decoder` or `encoder`; None for the only one.
            coefficients: captures what multiplies the value rows in place of the activations; the same where the model
                is not gated.
            timeout: seconds that all of it may take; None for ever.

        Yields:
            The layers that were asked for, each once.

        Raises:
            InvalidGroupError: the prompt is empty.
            InvalidSelectionError: a component, a layer or a neuron that the model does not have.
            ModelChangedError: the server has another bundle under the model's name by now.
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
        """Go on from a prompt greedily, under interventions or none, token by token as they come.

        >>> "".join(token.text for token in model.generate("The capital of France is"))    # doctest: +SKIP
        ' Paris'

        Args:
            prompt: text, or token ids that are taken as they are.
            interventions: one, or several that are applied together. The prompt is a group of its own, so that its
                neurons have no types to be chosen by.
            threshold: above which activation a neuron is active, for interventions that ask.
            max_tokens: most tokens; 0 leaves it to the server.
            past_newlines: whether to go on after a newline, too.
            timeout: seconds that all of it may take; None for ever.

        Raises:
            InvalidGroupError: the prompt is empty.
            InvalidSelectionError: a neuron set of another model.
            ServerError: any other failure. It is asked again only as long as no token came: another server may go on
                in another way.
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
        """A component by its name, or the only one."""
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
        """What uploads sets again that the server has lost; None where there are none."""

        def restore() -> None:
            for one in uploaded:
                self.upload(one.neurons)

        return restore if uploaded else None


def _questions(groups: Iterable[Group], options: AnalysisOptions) -> Iterator[Question]:
    """One question a group, each under an id of its own."""
    analyses = {predict: analysis_message(options, predict=predict) for predict in (True, False)}
    ids: set[str] = set()
    for place, group in enumerate(groups):
        if not isinstance(group, Group):
            raise arguments.refuse(f"groups[{place}]", group, _GROUP)
        group_id = group.id or str(place)
        if group_id in ids:
            raise InvalidGroupError(
                f"two groups have the id {group_id!r}, and answers come back under it: give each group its own"
            )
        ids.add(group_id)
        yield Question(group_message(group, group_id), analyses[options.predicts(group)])


def _positions(given: Sequence[int]) -> tuple[int, ...]:
    """Positions in a prompt; the server checks them against its length."""
    positions = arguments.integers("positions", given, "a list of integers, [-1], or None for all")
    for position in positions:
        if not -(2**31) <= position < 2**31:
            raise ValueError(f"position {position} does not exist: give a position of a token of the prompt")
    return positions


def _indices(what: str, given: Iterable[int], count: int, component: str) -> list[int]:
    """Indices that exist, as they were given."""
    indices = list(arguments.integers(f"{what}s", given, "a list of integers, [0], or None for all"))
    if not indices:
        raise InvalidSelectionError(f"no {what} of {component!r} was given: give some, or None for all")
    for index in indices:
        if not 0 <= index < count:
            raise InvalidSelectionError(
                f"{what} {index} of {component!r} does not exist: it has {count} (0 to {count - 1})"
            )
    return indices


def _parts(texts: Sequence[str], most: int, most_bytes: float) -> Iterator[list[str]]:
    """Texts in their order, in parts of so many; a text that is too long by itself is a part."""
    part: list[str] = []
    size = 0
    for text in texts:
        length = len(text.encode())
        if part and (len(part) == most or size + length > most_bytes):
            yield part
            part, size = [], 0
        part.append(text)
        size += length
    if part:
        yield part
