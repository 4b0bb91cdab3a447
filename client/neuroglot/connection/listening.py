"""Streaming responses to one request: activations layer by layer, text token by token."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from neuroglot.errors import NotFoundError, ServerError, UnavailableError
from neuroglot.results.results import CapturedLayer, GeneratedToken, require_same_bundle
from neuroglot.v1 import model_pb2, service_pb2

if TYPE_CHECKING:
    from neuroglot.connection.connection import Connection


def captured(
    connection: Connection,
    request: service_pb2.CaptureActivationsRequest,
    model: model_pb2.Model,
    layers: Sequence[int],
    columns: Sequence[int] | None,
    timeout: float | None,
) -> Generator[CapturedLayer, None, None]:
    """Yield every layer once; a retry requests only the layers that are still missing.

    Args:
        connection: connection to the server.
        request: the request without its layers.
        model: the model as of `Client.model`; responses of another bundle are rejected.
        layers: layer indices, in ascending order.
        columns: neuron indices in the order of the returned columns; None for the model's order.
        timeout: seconds for the whole stream, including retries; None for no limit.
    """
    patience = connection.patience(timeout)
    order = slice(None) if columns is None else np.searchsorted(np.array(request.neurons), columns)
    missing = list(layers)
    while missing:
        request.layers[:] = missing
        try:
            with closing(
                connection.listen(connection.stub.CaptureActivations, request, patience.time_left)
            ) as responses:
                for response in responses:
                    if response.HasField("provenance"):
                        require_same_bundle(response.provenance, model)
                    patience.calm()
                    missing.remove(response.layer)
                    layer = CapturedLayer.from_message(response)
                    yield replace(layer, values=layer.values[:, order])
            if missing:
                raise UnavailableError("UNAVAILABLE", f"the server ended the stream and left out the layers {missing}")
        except ServerError as error:
            connection.pause(patience, error)


def generated(
    connection: Connection,
    request: service_pb2.GenerateRequest,
    timeout: float | None,
    restore: Callable[[], None] | None,
) -> Generator[GeneratedToken, None, None]:
    """Yield the generated tokens; the request is retried only before the first token.

    Args:
        connection: connection to the server.
        request: the request.
        timeout: seconds for the whole stream, including retries; None for no limit.
        restore: uploads neuron sets again, once, if the server has lost them; None without uploaded sets.
    """
    patience, begun = connection.patience(timeout), False
    while True:
        try:
            with closing(connection.listen(connection.stub.Generate, request, patience.time_left)) as responses:
                for response in responses:
                    begun = True
                    yield GeneratedToken(response.token_id, response.text, response.log_probability)
        except NotFoundError:
            if restore is None:
                raise
            restore()
            restore = None
        except ServerError as error:
            if begun:
                raise
            connection.pause(patience, error)
        else:
            return
