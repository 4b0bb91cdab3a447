"""Entry point of the client: `connect` to a server, list its models, and get a handle to one."""

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
"""Default time for which a request is retried, in seconds: a server on a slow disk takes that long to restart."""

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
    """Connect to a server, or serve a bundle in this process. Both give the same `Client`.

    >>> connect("localhost:50051").model("bloomz-560m")            # doctest: +SKIP
    <Model 'bloomz-560m' at localhost:50051: bigscience/bloomz-560m, decoder 24 x 4096, float32>
    >>> with connect("bundles/bloomz-560m") as client:             # doctest: +SKIP
    ...     client.model().tokenize(["Paris"])
    >>> connect("https://neurons.example.org:443", token="...")    # doctest: +SKIP
    >>> connect("gpu-7:50051", root_certificates="ca.pem", certificate="me.pem", key="me.key")    # doctest: +SKIP

    The connection is tested at once, without retries. Later requests are retried for up to `retry_seconds` while the
    server is unavailable (for example restarted during a bulk analysis) or overloaded. Invalid requests are never
    retried: they raise at once.

    Args:
        target: `host:port` of a server, `https://host:port` for TLS, or the folder of a bundle (needs
            `pip install 'neuroglot[cpu]'`).
        timeout: seconds to wait for requests that need no computation, such as listing models or tokenizing.
        retry_seconds: seconds for which a request is retried, from its first failure to its next success; 0 disables
            retries.
        on_retry: called before each pause with the error and the length of the pause in seconds; by default the retry
            is logged as a warning.
        token: bearer token that identifies the caller; by default the environment variable NEUROGLOT_TOKEN. It is sent
            over TLS only, unless the server is on this machine.
        root_certificates: PEM file with the root certificates that the server's certificate is verified against; giving
            one enables TLS. By default the environment variable NEUROGLOT_ROOT_CERTIFICATES or, with `https://`, gRPC's
            own root certificates.
        certificate: PEM file with the client's certificate, for servers that require one (mutual TLS).
        key: PEM file with the private key of `certificate`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, or a number of seconds is negative.
        InvalidTargetError: the target is neither an address nor a folder, certificates cannot be read, or the token
            would cross the network unencrypted.
        UnavailableError: no server answers at the address.
        InstallationError: the target is a folder, and the server's packages are not installed.
        BundleError: the target is a folder that is not a bundle, or a damaged bundle.
    """
    # Imported here because gRPC would double the import time of neuroglot.
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
    """A connection to a server, made by `connect`. Close it, or use it in a `with` statement.

    It is thread-safe.
    """

    def __init__(self, connection: Connection, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout

    def models(self) -> tuple[model_pb2.Model, ...]:
        """List the models of the server in loading order: names, geometry, identity and limits."""
        request = service_pb2.ListModelsRequest()
        return tuple(self._connection.call(self._connection.stub.ListModels, request, self._timeout).models)

    def model(self, name: str | None = None) -> Model:
        """Get a model by name.

        Args:
            name: the model's name on the server; None if the server has exactly one model.

        Raises:
            NotFoundError: the server has no model of this name, or no name was given and the server does not have
                exactly one model. The message lists the models of the server.
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
        """Load or reload a bundle on the server while it serves other models. Requires `may_manage_models`.

        Args:
            bundle: the bundle's folder, relative to the folder from which the server may load bundles.
            name: the name to serve the model under; empty for the folder's name. A model that is already served under
                this name is replaced once the new one is ready.

        Returns:
            The loaded model.

        Raises:
            ServerError: the server refused or failed. The request is not retried.
        """
        arguments.text("bundle", bundle, expected="the path of a bundle on the server, a string")
        arguments.text("name", name, expected=_MODEL_NAME)
        request = service_pb2.LoadModelRequest(bundle=bundle, name=name)
        response = self._connection.call(self._connection.stub.LoadModel, request, timeout=None, again=False)
        return Model(self._connection, response.model, self._timeout)

    def unload(self, name: str) -> None:
        """Unload a model from the server. Requires `may_manage_models`.

        Requests in flight run to their end; new ones are refused.

        Raises:
            ServerError: the server refused or failed. The request is not retried.
        """
        request = service_pb2.UnloadModelRequest(model=arguments.text("name", name, expected=_MODEL_NAME))
        self._connection.call(self._connection.stub.UnloadModel, request, timeout=None, again=False)

    def close(self) -> None:
        """Close the connection, and cancel the requests in flight on it."""
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
