"""A model on a server: what can be asked of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Unpack

from neuroglot.errors import InvalidGroupError, InvalidSelectionError, NotFoundError
from neuroglot.groups import Group
from neuroglot.interventions import Intervention
from neuroglot.listening import captured, generated
from neuroglot.messages import (
    analysis_message,
    group_message,
    intervention_message,
    neuron_set_message,
    priority_message,
    row_message,
)
from neuroglot.neurons import NeuronSet
from neuroglot.results import CapturedLayer, GeneratedToken, GroupFailure, GroupResult
from neuroglot.resuming import Question, Resuming, Terms
from neuroglot.selections import Uploaded
from neuroglot.v1 import model_pb2, service_pb2
from neuroglot.wanted import Asked, Priority, Wanted, as_interventions, check_fits, require_fit, uploads

if TYPE_CHECKING:
    from neuroglot.connection import Connection


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

    def tokenize(self, texts: Sequence[str], *, special_tokens: bool = True) -> tuple[Tokens, ...]:
        """The tokens of texts, as the model's own tokenizer gives them.

        Args:
            texts: each is tokenized by itself.
            special_tokens: whether to add what the tokenizer's post-processor adds (BOS, `</s>`).
        """
        if isinstance(texts, str):
            raise TypeError(f"texts is one text, {texts!r}: give a list of them")
        request = service_pb2.TokenizeRequest(model=self.name, texts=texts, without_special_tokens=not special_tokens)
        response = self._connection.call(self._connection.stub.Tokenize, request, self._timeout)
        return tuple(Tokens(tuple(text.ids), tuple(text.tokens)) for text in response.texts)

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
        require_fit(neurons, self.info, "an upload")
        request = service_pb2.UploadNeuronSetRequest(model=self.name, neurons=neuron_set_message(neurons))
        response = self._connection.call(self._connection.stub.UploadNeuronSet, request, self._timeout)
        return Uploaded(response.name, neurons)

    def analyze(
        self,
        group: Group,
        *,
        priority: Priority | str | None = None,
        timeout: float | None = None,
        **asked: Unpack[Asked],
    ) -> GroupResult:
        """Analyse one group: types of its neurons, and predictions under every variant.

        Args:
            group: the prompts, and the answers that predictions are scored against.
            priority: `interactive`, which is also the default, or `bulk`.
            timeout: seconds to wait for the answer, all tries together; None for ever.
            **asked: what is wanted:

                variants: by name, the interventions to compare with the baseline, which always runs.
                thresholds: a neuron is active where its activation exceeds the threshold; 0 by default. Interventions
                    that choose neurons by type use the first.
                type_map: whether to get the type of every neuron, by default True; counts of types always come.
                active: whether to get which neurons are active in each row, which are dead where `dead` is asked for,
                    and which contribute most where `contribution` is; counts come without it.
                contribution: whether to get contributions by type; a number is the share of a layer's neurons that
                    count as its top contributors (0.05 otherwise), `ContributionOptions` say more.
                effective_score: whether to get effective scores by type; `EffectiveScoreOptions` say of which tokens.
                dead: whether to get how many neurons are inactive at every position of each row's prompt.
                predict: whether to get predictions; by default if the group has answers or choices, or there are
                    variants.
                generate: whether predictions are generated, too, and not only scored; by default True.
                max_tokens: most tokens to generate for a row without an answer; 0 leaves it to the server.

        Raises:
            InvalidSelectionError: a neuron set of another model, or a variant without interventions.
            InvalidRequestError: what the server does not accept; `violations` names the fields.
            ServerError: any other failure, see `neuroglot.errors`.
        """
        wanted = self._wanted(asked)
        request = service_pb2.AnalyzeGroupRequest(
            model=self.name,
            group=group_message(group, group.id),
            analysis=analysis_message(wanted, predict=wanted.predicts(group)),
            priority=priority_message(priority),
        )
        restore = self._restoring(wanted.uploads)
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
        priority: Priority | str | None = None,
        in_flight: int | None = None,
        timeout: float | None = None,
        group_timeout: float | None = None,
        **asked: Unpack[Asked],
    ) -> Generator[GroupResult | GroupFailure, None, None]:
        """Analyse many groups on one stream, and yield the answers as they come, in any order.

        Groups are taken as answers arrive, in the caller's thread, so there may be any number of them, made on the
        way. Nothing is sent before the first answer is asked for. A stream that breaks is followed by another one,
        which asks what is unanswered: each group is answered once. Closing the iterator, or leaving it behind, cancels
        what is under way; answers that were yielded are kept.

        Args:
            groups: each with its own id; one with an empty id gets its place among them, from 0, as its id.
            priority: `bulk`, which is also the default, or `interactive`.
            in_flight: most groups to have under way; never more than the server's `limits.groups_in_flight`, which is
                also the default.
            timeout: seconds that all of it may take; None for ever.
            group_timeout: seconds that each group may take from when it is sent; None for ever. One that takes longer
                has failed.
            **asked: as in `analyze`; `predict` is decided for each group.

        Yields:
            A result, or a `GroupFailure` for a group that the server could not analyse: the others go on.

        Raises:
            InvalidGroupError: two groups have the same id.
            InvalidSelectionError: as in `analyze`.
            ModelChangedError: the server has another bundle under the model's name by now.
            ServerError: the stream as a whole failed, and did so for as long as retries go on.
        """
        if in_flight is not None and in_flight < 1:
            raise ValueError(f"in_flight={in_flight} lets no group be sent: give 1 or more")
        limit = max(1, self.info.limits.groups_in_flight)
        wanted = self._wanted(asked)
        terms = Terms(
            model=self.info,
            priority=priority_message(priority),
            in_flight=min(in_flight or limit, limit),
            timeout=timeout,
            group_timeout=group_timeout,
            restore=self._restoring(wanted.uploads),
        )
        return self._answers(terms, groups, wanted)

    def _answers(
        self, terms: Terms, groups: Iterable[Group], wanted: Wanted
    ) -> Generator[GroupResult | GroupFailure, None, None]:
        yield from Resuming(self._connection, terms, _questions(groups, wanted)).answers()

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
            positions=positions,
            coefficients=coefficients,
        )
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
            threshold=threshold,
            max_tokens=max_tokens,
            past_newlines=past_newlines,
        )
        return generated(self._connection, request, timeout, self._restoring(uploads(applied)))

    def __repr__(self) -> str:
        return f"<Model {self.name!r} at {self._connection.address}>"

    def _component(self, name: str | None) -> model_pb2.Component:
        """A component by its name, or the only one."""
        components = {one.name: one for one in self.info.components}
        chosen = name or (next(iter(components)) if len(components) == 1 else "")
        if chosen not in components:
            given = "no component" if name is None else f"the component {name!r}"
            raise InvalidSelectionError(f"{given} was given for {self.name!r}: it has {', '.join(components)}")
        return components[chosen]

    def _wanted(self, asked: Asked) -> Wanted:
        wanted = Wanted(**asked)
        wanted.check_fits(self.info)
        return wanted

    def _restoring(self, uploaded: Sequence[Uploaded]) -> Callable[[], None] | None:
        """What uploads sets again that the server has lost; None where there are none."""

        def restore() -> None:
            for one in uploaded:
                self.upload(one.neurons)

        return restore if uploaded else None


def _questions(groups: Iterable[Group], wanted: Wanted) -> Iterator[Question]:
    """One question a group, each under an id of its own."""
    analyses = {predict: analysis_message(wanted, predict=predict) for predict in (True, False)}
    ids: set[str] = set()
    for place, group in enumerate(groups):
        group_id = group.id or str(place)
        if group_id in ids:
            raise InvalidGroupError(
                f"two groups have the id {group_id!r}, and answers come back under it: give each group its own"
            )
        ids.add(group_id)
        yield Question(group_message(group, group_id), analyses[wanted.predicts(group)])


def _indices(what: str, given: Iterable[int], count: int, component: str) -> list[int]:
    """Indices that exist, as they were given."""
    indices = list(given)
    if not indices:
        raise InvalidSelectionError(f"no {what} of {component!r} was given: give some, or None for all")
    for index in indices:
        if not 0 <= index < count:
            raise InvalidSelectionError(
                f"{what} {index} of {component!r} does not exist: it has {count} (0 to {count - 1})"
            )
    return indices
