"""Numbers for Prometheus: of calls, of batches, of caches and of models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import cache
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from neuroglot.v1 import service_pb2
from neuroglot_server.config.installation import versions
from neuroglot_server.core import BatchRun, MemoryUse, Observer

_SERVICE = service_pb2.DESCRIPTOR.services_by_name["NeuroglotService"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_RATIOS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75)

_MOST_TENANTS = 1000
OTHER_TENANTS = "(others)"

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
        Info("neuroglot_build", "Versions of what runs.", registry=registry).info(versions())
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
        self._transport_limit = Gauge(
            "neuroglot_transport_limit_bytes",
            "Bytes of requests and results at which streams slow down.",
            registry=registry,
        )
        self._refusals = Counter(
            "neuroglot_refusals_total",
            "Calls, and groups of streams, that were refused or failed, by the kind of error.",
            ("tenant", "reason"),
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
        self._tenants: set[str] = set()
        self._problem = "the server is starting"
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

    def refused(self, tenant: str, reason: str) -> None:
        """A call, or a group of a stream, was refused or failed; the reason is the error's class, `QueueFull`."""
        self._series(self._refusals, self.tenant_label(tenant), reason).inc()

    def tenant_label(self, tenant: str) -> str:
        """The tenant's name, or `(others)` for those that come after the first thousand.

        With clients' certificates every common name is a tenant: their number is not bounded by a file.
        """
        if tenant not in self._tenants:
            if len(self._tenants) >= _MOST_TENANTS:
                return OTHER_TENANTS
            self._tenants.add(tenant)
        return tenant

    def health(self, problem: str) -> None:
        """Why the server as a whole does not answer; empty while it does."""
        self._problem = problem

    @property
    def problem(self) -> str:
        """What `health` was told last; that the server starts, before it was told anything."""
        return self._problem

    def models(self, answering: Mapping[str, bool]) -> None:
        """These models are served, and answer or hang; of others nothing more is said."""
        for name in self._known - answering.keys():
            self._up.remove(name)
            with suppress(KeyError):  # no request has come to it
                self.depth.remove(name)
        self._known = set(answering)
        for name, answers in answering.items():
            self._up.labels(name).set(answers)

    def memory(self, of_models: Callable[[], Mapping[str, Mapping[str, MemoryUse]]], transport_bytes: int) -> None:
        """Say from now on how much memory is in use, and how much may be.

        Args:
            of_models: what models hold, by model and part (`queue`, `cache`, `uploads`); called at each scrape, on a
                thread of its own.
            transport_bytes: the limit of what the transport holds.
        """
        self.registry.register(_Memory(of_models))
        self._transport_limit.set(transport_bytes)

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
        self._series(self._metrics.tokens, self._metrics.tenant_label(tenant), self._model).inc(tokens)

    def queued(self, tokens: int) -> None:
        """So many tokens are in the house now, waiting or running."""
        self._metrics.depth.labels(self._model).set(tokens)

    def cached(self, cache: str, hit_tokens: int, missed_tokens: int) -> None:
        """Of a step's tokens so many were found in a cache, and so many were not."""
        self._series(self._metrics.cached, self._model, cache, "hit").inc(hit_tokens)
        self._series(self._metrics.cached, self._model, cache, "miss").inc(missed_tokens)


class _Memory(Collector):
    """Memory in use and its limits, asked for at each scrape."""

    def __init__(self, of_models: Callable[[], Mapping[str, Mapping[str, MemoryUse]]]) -> None:
        self._of_models = of_models

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The families, without samples."""
        return self._families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The families, with a sample for each part of each model."""
        used, limit = self._families()
        for model, parts in self._of_models().items():
            for part, use in parts.items():
                used.add_metric((model, part), use.bytes)
                limit.add_metric((model, part), use.limit)
        yield from (used, limit)

    def _families(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        labels = ("model", "part")
        return (
            GaugeMetricFamily("neuroglot_memory_bytes", "Memory that is in use.", labels=labels),
            GaugeMetricFamily("neuroglot_memory_limit_bytes", "How much of it may be in use.", labels=labels),
        )


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
