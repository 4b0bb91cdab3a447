"""Numbers for Prometheus: of calls, of batches, of caches and of models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from neuroglot.v1 import service_pb2
from neuroglot_server.address import Address, AddressError
from neuroglot_server.core import BatchRun, Observer

_SERVICE = service_pb2.DESCRIPTOR.services_by_name["NeuroglotService"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_RATIOS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75)


_Metric = TypeVar("_Metric", Counter, Histogram)


class Metrics:
    """All numbers of one server. It observes the calls; `of_model` gives what observes a model.

    Attributes:
        registry: where all of them are, by the names that dashboards ask for.
        depth: tokens in the house, by model.
        waited: how long rows waited, by model.
        rows: rows of batches, by model and component, like the next two.
        padding: share of padding.
        running: how long batches ran.
        tokens: of requests, by tenant and model.
        cached: tokens looked up, by model, cache and outcome.
    """

    def __init__(self) -> None:
        """Start all numbers at nought."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        call = ("grpc_type", "grpc_service", "grpc_method")
        self._started = Counter("grpc_server_started_total", "Calls that came in.", call, registry=registry)
        self._handled = Counter(
            "grpc_server_handled_total", "Calls that ended, by status.", (*call, "grpc_code"), registry=registry
        )
        self._handling = Histogram(
            "grpc_server_handling_seconds", "How long calls took.", call, registry=registry, buckets=_SECONDS
        )
        self._held = Gauge(
            "neuroglot_transport_held_bytes",
            "Bytes of requests that were read and of results that wait to be written.",
            registry=registry,
        )
        self.depth = Gauge("neuroglot_queue_depth_tokens", "Tokens that wait or run.", ("model",), registry=registry)
        self.waited = Histogram(
            "neuroglot_queue_seconds",
            "How long rows waited for a batch.",
            ("model",),
            registry=registry,
            buckets=_SECONDS,
        )
        part = ("model", "component")
        self.rows = Histogram("neuroglot_batch_rows", "Rows of batches.", part, registry=registry, buckets=_ROWS)
        self.padding = Histogram(
            "neuroglot_batch_padding_ratio",
            "Share of the positions of batches that is padding.",
            part,
            registry=registry,
            buckets=_RATIOS,
        )
        self.running = Histogram(
            "neuroglot_batch_seconds", "How long batches ran.", part, registry=registry, buckets=_SECONDS
        )
        self.tokens = Counter(
            "neuroglot_tokens_total",
            "Tokens of requests that were let in, over all their variants.",
            ("tenant", "model"),
            registry=registry,
        )
        self.cached = Counter(
            "neuroglot_cache_tokens_total",
            "Tokens that were looked up in a cache, by what was found.",
            ("model", "cache", "found"),
            registry=registry,
        )
        self._certificate_expires: Gauge | None = None
        self._series = cache(_series)
        self._known: set[str] = set()
        self._up = Gauge(
            "neuroglot_model_up", "1 where a model answers, 0 where a pass hangs.", ("model",), registry=registry
        )

    def started(self, method: str) -> None:
        """A call has come in."""
        self._series(self._started, _KIND[method], _SERVICE.full_name, method).inc()

    def handled(self, method: str, code: str, seconds: float) -> None:
        """A call has ended with a status, `OK` or another."""
        call = (_KIND[method], _SERVICE.full_name, method)
        self._series(self._handled, *call, code).inc()
        self._series(self._handling, *call).observe(seconds)

    def held(self, size: int) -> None:
        """So many bytes of requests and results are held by the transport now."""
        self._held.set(size)

    def models(self, answering: Mapping[str, bool]) -> None:
        """These models are served, and answer or hang; of others nothing more is said."""
        for name in self._known - answering.keys():
            self._up.remove(name)
            with suppress(KeyError):  # no request has come to it
                self.depth.remove(name)
        self._known = set(answering)
        for name, answers in answering.items():
            self._up.labels(name).set(answers)

    def certificate_expires(self, when: datetime) -> None:
        """The server's certificate expires at this time; without TLS there is no such number."""
        if self._certificate_expires is None:
            self._certificate_expires = Gauge(
                "neuroglot_certificate_expiry_timestamp_seconds",
                "When the server's certificate, or one of its chain, expires: seconds since 1970.",
                registry=self.registry,
            )
        self._certificate_expires.set(when.timestamp())

    def of_model(self, name: str) -> Observer:
        """What is told of the model of a name."""
        return _ModelMetrics(self, name)

    @contextmanager
    def served(self, address: Address) -> Iterator[Address]:
        """Give the numbers to whoever asks for `http://ADDRESS/metrics`, from a thread, for the length of a block.

        Raises:
            AddressError: the address cannot be had.
        """
        try:
            server, thread = start_http_server(address.port, address.host, self.registry)
        except OSError as error:
            raise AddressError(f"cannot serve metrics on {address}: {error.strerror or error}") from None
        try:
            yield Address(address.host, server.server_port)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _ModelMetrics:
    """The numbers of one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._series = cache(_series)

    def batch(self, run: BatchRun) -> None:
        """A batch has run."""
        part = (self._model, run.component)
        self._series(self._metrics.rows, *part).observe(run.rows)
        self._series(self._metrics.padding, *part).observe(1 - run.tokens / run.positions)
        self._series(self._metrics.running, *part).observe(run.seconds)
        waited = self._series(self._metrics.waited, self._model)
        for seconds in run.queue_seconds:
            waited.observe(seconds)

    def admitted(self, tenant: str, tokens: int) -> None:
        """A request of so many tokens, over all its variants, was let in."""
        self._series(self._metrics.tokens, tenant, self._model).inc(tokens)

    def queued(self, tokens: int) -> None:
        """So many tokens are in the house now, waiting or running."""
        self._metrics.depth.labels(self._model).set(tokens)

    def cached(self, cache: str, hit_tokens: int, missed_tokens: int) -> None:
        """Of a step's tokens so many were found in a cache, and so many were not."""
        self._series(self._metrics.cached, self._model, cache, "hit").inc(hit_tokens)
        self._series(self._metrics.cached, self._model, cache, "miss").inc(missed_tokens)


def _series(metric: _Metric, *labels: str) -> _Metric:
    """What is counted under these labels; looking it up takes as long as counting."""
    return metric.labels(*labels)


_KIND = {
    method.name: {
        (False, False): "unary",
        (True, False): "client_stream",
        (False, True): "server_stream",
        (True, True): "bidi_stream",
    }[method.client_streaming, method.server_streaming]
    for method in _SERVICE.methods
}
"""What the contract says of each method, in the words of other servers' metrics."""
