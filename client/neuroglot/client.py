"""The client: asks a server for models and analyses."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from neuroglot.errors import InvalidGroupError, InvalidSelectionError, NotFoundError, ServerError
from neuroglot.groups import Group
from neuroglot.messages import Variants, Wanted, as_variants, group_message
from neuroglot.neurons import NeuronSet
from neuroglot.results import GroupResult
from neuroglot.statuses import from_group_error
from neuroglot.v1 import model_pb2, service_pb2

if TYPE_CHECKING:
    from neuroglot.connection import Connection

_NO_VARIANTS: Variants = MappingProxyType({})


class Tokens(NamedTuple):
    """The tokens of a text.

    Attributes:
        ids: token ids.
        tokens: the same tokens as the vocabulary spells them.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class GroupFailure:
    """Why a group of `Model.analyze_many` has no result; the others go on.

    Attributes:
        group_id: the id of the group.
        error: what `Model.analyze` would have raised.
    """

    group_id: str
    error: ServerError


def connect(target: str | Path, *, timeout: float = 10.0) -> Client:
    """Connect to a server, or serve a bundle in this process: what comes back is the same.

    >>> connect("localhost:50051").model("bloomz-560m")            # doctest: +SKIP
    <Model 'bloomz-560m' at localhost:50051>
    >>> with connect("bundles/bloomz-560m") as client:             # doctest: +SKIP
    ...     client.model().tokenize(["Paris"])

    Args:
        target: `host:port` of a server, or the folder of a bundle (needs `pip install 'neuroglot[cpu]'`).
        timeout: seconds within which the server must answer what takes no computation, now and later.

    Raises:
        InvalidTargetError: the target is neither.
        UnavailableError: no server answers there.
        InstallationError: a folder, and the server's packages are not installed.
        BundleError: a folder that is no bundle, or a damaged one.
    """
    from neuroglot.connection import open_connection  # here, for gRPC would be half of the time that our import takes

    client = Client(open_connection(target), timeout)
    try:
        client.models()
    except BaseException:
        client.close()
        raise
    return client


class Client:
    """A connection to a server; `connect` makes one. Close it, or use it in a `with` statement.

    Many threads may use it at once.
    """

    def __init__(self, connection: Connection, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout

    def models(self) -> tuple[model_pb2.Model, ...]:
        """What the server has, in the order in which it was loaded: names, geometry, identity and limits."""
        request = service_pb2.ListModelsRequest()
        return tuple(self._connection.call(self._connection.stub.ListModels, request, self._timeout).models)

    def model(self, name: str | None = None) -> Model:
        """A model by its name, or the only one.

        Raises:
            NotFoundError: the server has no such model, or no name was given and it has several; the message names
                those that it has.
        """
        if name is None:
            infos = self.models()
            if len(infos) != 1:
                names = ", ".join(repr(info.name) for info in infos)
                raise NotFoundError(
                    "NOT_FOUND", f"the server has {len(infos)} models ({names}): say which, model(NAME)"
                )
            info = infos[0]
        else:
            request = service_pb2.GetModelRequest(model=name)
            info = self._connection.call(self._connection.stub.GetModel, request, self._timeout).model
        return Model(self._connection, info, self._timeout)

    def close(self) -> None:
        """End the connection, and with it what is under way on it."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self._connection.address}>"


class Model:
    """A model on a server; `Client.model` gives one.

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
        components = {one.name: one for one in self.info.components}
        name = component or (next(iter(components)) if len(components) == 1 else "")
        if name not in components:
            given = "no component" if component is None else f"the component {component!r}"
            raise InvalidSelectionError(f"{given} was given for {self.name!r}: it has {', '.join(components)}")
        layers, neurons = components[name].layers, components[name].neurons
        return NeuronSet.from_indices(indices, component=name, layers=layers, neurons=neurons, source=self.info.source)

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

    def analyze(
        self,
        group: Group,
        *,
        variants: Variants = _NO_VARIANTS,
        thresholds: Iterable[float] = (0.0,),
        type_map: bool = True,
        active: bool = False,
        contribution: bool | float = False,
        predict: bool | None = None,
        generate: bool = True,
        max_tokens: int = 0,
        timeout: float | None = None,
    ) -> GroupResult:
        """Analyse one group: types of its neurons, and predictions under every variant.

        Args:
            group: the prompts, and the answers that predictions are scored against.
            variants: by name, the interventions to compare with the baseline, which always runs.
            thresholds: a neuron is active where its activation exceeds the threshold. Interventions that choose
                neurons by type use the first.
            type_map: whether to get the type of every neuron; counts of types always come.
            active: whether to get which neurons are active in each row; their counts always come.
            contribution: whether to get contributions by type; a number is the share of a layer's neurons that count
                as its top contributors (0.05 otherwise).
            predict: whether to get predictions; by default if the group has answers or there are variants.
            generate: whether predictions are generated, too, and not only scored.
            max_tokens: most tokens to generate for a row without an answer; 0 leaves it to the server.
            timeout: seconds to wait for the answer; None for ever.

        Raises:
            InvalidSelectionError: a neuron set of another model, or a variant without interventions.
            InvalidRequestError: what the server does not accept; `violations` names the fields.
            ServerError: any other failure, see `neuroglot.errors`.
        """
        wanted = self._wanted(variants, thresholds, type_map, active, contribution, predict, generate, max_tokens)
        request = service_pb2.AnalyzeGroupRequest(
            model=self.name, group=group_message(group, group.id), analysis=wanted.message(group)
        )
        response = self._connection.call(self._connection.stub.AnalyzeGroup, request, timeout)
        return GroupResult(response.result)

    def analyze_many(
        self,
        groups: Iterable[Group],
        *,
        variants: Variants = _NO_VARIANTS,
        thresholds: Iterable[float] = (0.0,),
        type_map: bool = True,
        active: bool = False,
        contribution: bool | float = False,
        predict: bool | None = None,
        generate: bool = True,
        max_tokens: int = 0,
        in_flight: int | None = None,
        timeout: float | None = None,
    ) -> Generator[GroupResult | GroupFailure, None, None]:
        """Analyse many groups on one stream, and yield the answers as they come, in any order.

        Groups are taken as answers arrive, in the caller's thread, so there may be any number of them, made on the
        way. Nothing is sent before the first answer is asked for. Closing the iterator, or leaving it behind, cancels
        what is under way; answers that were yielded are kept.

        Args:
            groups: each with its own id; one with an empty id gets its place among them, from 0, as its id.
            variants: as in `analyze`, like all that follow but the last two.
            thresholds: as in `analyze`.
            type_map: as in `analyze`.
            active: as in `analyze`.
            contribution: as in `analyze`.
            predict: as in `analyze`, and decided for each group.
            generate: as in `analyze`.
            max_tokens: as in `analyze`.
            in_flight: most groups to have under way; never more than the server's `limits.groups_in_flight`, which is
                also the default.
            timeout: seconds that the whole stream may take; None for ever.

        Yields:
            A result, or a `GroupFailure` for a group that the server could not analyse: the others go on.

        Raises:
            InvalidGroupError: two groups have the same id.
            InvalidSelectionError: as in `analyze`.
            ServerError: the stream as a whole failed.
        """
        if in_flight is not None and in_flight < 1:
            raise ValueError(f"in_flight={in_flight} lets no group be sent: give 1 or more")
        limit = max(1, self.info.limits.groups_in_flight)
        wanted = self._wanted(variants, thresholds, type_map, active, contribution, predict, generate, max_tokens)
        return self._answers(groups, wanted, min(in_flight or limit, limit), timeout)

    def _wanted(
        self,
        variants: Variants,
        thresholds: Iterable[float],
        type_map: bool,
        active: bool,
        contribution: bool | float,
        predict: bool | None,
        generate: bool,
        max_tokens: int,
    ) -> Wanted:
        wanted = Wanted(
            as_variants(variants), tuple(thresholds), type_map, active, contribution, predict, generate, max_tokens
        )
        wanted.check_fits(self.info)
        return wanted

    def _answers(
        self, groups: Iterable[Group], wanted: Wanted, in_flight: int, timeout: float | None
    ) -> Generator[GroupResult | GroupFailure, None, None]:
        requests = _requests(self.name, groups, wanted)
        with closing(self._connection.analyze_groups(requests, in_flight, timeout)) as responses:
            for response in responses:
                if response.WhichOneof("outcome") == "error":
                    yield GroupFailure(response.group_id, from_group_error(response.error))
                else:
                    yield GroupResult(response.result)

    def __repr__(self) -> str:
        return f"<Model {self.name!r} at {self._connection.address}>"


def _requests(model: str, groups: Iterable[Group], wanted: Wanted) -> Iterator[service_pb2.AnalyzeGroupsRequest]:
    """One message a group; what is as in the message before is left out."""
    ids: set[str] = set()
    previous = None
    for place, group in enumerate(groups):
        group_id = group.id or str(place)
        if group_id in ids:
            raise InvalidGroupError(
                f"two groups have the id {group_id!r}, and answers come back under it: give each group its own"
            )
        ids.add(group_id)
        analysis = wanted.message(group)
        yield service_pb2.AnalyzeGroupsRequest(
            model="" if place else model,
            group=group_message(group, group_id),
            analysis=None if analysis == previous else analysis,
        )
        previous = analysis
