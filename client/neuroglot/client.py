"""The client: finds a server and its models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from neuroglot import arguments
from neuroglot.connection.credentials import Credentials
from neuroglot.errors import InvalidTargetError, NotFoundError, ServerError
from neuroglot.model import Model
from neuroglot.v1 import model_pb2, service_pb2

if TYPE_CHECKING:
    from neuroglot.connection.connection import Connection

RETRY_SECONDS = 120.0
"""How long a question is asked again by default: a server on a disk that is slow takes that long to be back."""

_MODEL_NAME = "the name of a model, a string"


def connect(
    target: str | Path,
    *,
    timeout: float = 10.0,
    retry_seconds: float = RETRY_SECONDS,
    on_retry: Callable[[ServerError, float], None] | None = None,
    token: str | None = None,
    root_certificates: str | Path | None = None,
    certificate: str | Path | None = None,
    key: str | Path | None = None,
) -> Client:
    """Connect to a server, or serve a bundle in this process: what comes back is the same.

    >>> connect("localhost:50051").model("bloomz-560m")            # doctest: +SKIP
    <Model 'bloomz-560m' at localhost:50051: bigscience/bloomz-560m, decoder 24 x 4096, float32>
    >>> with connect("bundles/bloomz-560m") as client:             # doctest: +SKIP
    ...     client.model().tokenize(["Paris"])
    >>> connect("https://neurons.example.org:443", token="...")    # doctest: +SKIP
    >>> connect("gpu-7:50051", root_certificates="ca.pem", certificate="me.pem", key="me.key")    # doctest: +SKIP

    Whether a server is there is found out at once. From then on, questions are asked again while it is away (it may be
    restarted under a bulk analysis) or full, as long as `retry_seconds` say; what is wrong with a question is told at
    once, always.

    Args:
        target: `host:port` of a server, `https://host:port` for TLS, or the folder of a bundle (needs
            `pip install 'neuroglot[cpu]'`).
        timeout: seconds within which the server must answer what takes no computation, now and later.
        retry_seconds: how long to go on asking, from the beginning of a trouble to the next answer; 0 for not at all.
        on_retry: is told before each pause why, and how many seconds it takes; by default the log is.
        token: what the server knows the caller by; by default the environment's NEUROGLOT_TOKEN. It is sent by TLS
            alone, unless the server is on this machine.
        root_certificates: PEM file with the certificates by which the server's is known, which also asks for TLS; by
            default the environment's NEUROGLOT_ROOT_CERTIFICATES or, with `https://`, those that gRPC brings.
        certificate: PEM file with the client's own certificate, for a server that asks for one.
        key: PEM file with its private key.

    Raises:
        TypeError, ValueError: an argument of another kind, or a negative number of seconds.
        InvalidTargetError: the target is neither; certificates cannot be read; a token would cross the network in the
            clear.
        UnavailableError: no server answers there.
        InstallationError: a folder, and the server's packages are not installed.
        BundleError: a folder that is no bundle, or a damaged one.
    """
    # Here, for gRPC would be half of the time that our import takes.
    from neuroglot.connection.connection import Retries, log_retry, open_connection

    if not isinstance(target, str | Path):
        expected = "an address, 'localhost:50051', or the folder of a bundle"
        raise arguments.refuse("target", target, expected, InvalidTargetError)
    for name, value in (("timeout", timeout), ("retry_seconds", retry_seconds)):
        if value is None:
            raise arguments.refuse(name, value, "a number of seconds of 0 or more")
        arguments.seconds(name, value)
    if on_retry is not None and not callable(on_retry):
        raise arguments.refuse("on_retry", on_retry, "a function of an error and a number of seconds, or None")
    arguments.optional_text("token", token)
    for name, file in (("root_certificates", root_certificates), ("certificate", certificate), ("key", key)):
        if file is not None:
            arguments.path(name, file)
    credentials = Credentials.read(root_certificates, certificate, key, token)
    connection = open_connection(target, credentials, Retries(retry_seconds, on_retry or log_retry))
    client = Client(connection, timeout)
    try:
        connection.call(connection.stub.ListModels, service_pb2.ListModelsRequest(), timeout, again=False)
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
            request = service_pb2.GetModelRequest(model=arguments.text("name", name, expected=_MODEL_NAME))
            info = self._connection.call(self._connection.stub.GetModel, request, self._timeout).model
        return Model(self._connection, info, self._timeout)

    def load(self, bundle: str, name: str = "") -> Model:
        """Have the server load a bundle, or load it anew, while it serves others. For tenants that may.

        Args:
            bundle: the bundle's folder, relative to the folder that the server was told to load from.
            name: the name to serve it by; empty for the folder's. A model that has it is replaced once the new one
                stands.

        Raises:
            ServerError: the server refused, or failed. It is not asked again by itself.
        """
        arguments.text("bundle", bundle, expected="the path of a bundle on the server, a string")
        arguments.text("name", name, expected=_MODEL_NAME)
        request = service_pb2.LoadModelRequest(bundle=bundle, name=name)
        response = self._connection.call(self._connection.stub.LoadModel, request, timeout=None, again=False)
        return Model(self._connection, response.model, self._timeout)

    def unload(self, name: str) -> None:
        """Have the server take a model out of service: what runs on it ends, nothing new begins. For tenants that may.

        Raises:
            ServerError: the server refused, or failed. It is not asked again by itself.
        """
        request = service_pb2.UnloadModelRequest(model=arguments.text("name", name, expected=_MODEL_NAME))
        self._connection.call(self._connection.stub.UnloadModel, request, timeout=None, again=False)

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

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError(
            f"{self!r} cannot be pickled: it holds a connection; connect in each process, neuroglot.connect(ADDRESS)"
        )
