"""Prometheus metrics of calls, batches, caches and models."""

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

_MAX_TENANTS = 1000
OTHER_TENANTS = "(others)"

_Metric = TypeVar("_Metric", Counter, Histogram)


class Metrics:
    """All metrics of one server. Observes the transport; `of_model` returns the observer of a model.

    Attributes:
        registry: the registry of all metrics.
        depth: tokens in flight, by model.
        waited: seconds that rows waited for a batch, by model.
        rows: rows per batch, by model and component.
        padding: fraction of positions of a batch that are padding, by model and component.
        running: run time of batches in seconds, by model and component.
        tokens: tokens of admitted requests, by tenant and model.
        cached: tokens looked up in a cache, by model, cache and outcome.
    """

    def __init__(self) -> None:
        """Create all metrics, starting at zero."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info("neuroglot_build", "Versions of neuroglot, Python and ONNX Runtime.", registry=registry).info(versions())
        call = ("grpc_type", "grpc_service", "grpc_method")
        self._started = Counter("grpc_server_started_total", "Calls started.", call, registry=registry)
        self._handled = Counter(
            "grpc_server_handled_total", "Calls completed, by status.", (*call, "grpc_code"), registry=registry
        )
        self._handling = Histogram(
            "grpc_server_handling_seconds", "Duration of calls.", call, registry=registry, buckets=_SECONDS
        )
        self._held = Gauge(
            "neuroglot_transport_held_bytes",
            "Bytes of received requests and unsent results.",
            registry=registry,
        )
        self._transport_limit = Gauge(
            "neuroglot_transport_limit_bytes",
            "Bytes of received requests and unsent results above which streams slow down.",
            registry=registry,
        )
        self._refusals = Counter(
            "neuroglot_refusals_total",
            "Calls, and groups of streams, that were refused or failed, by class of error.",
            ("tenant", "reason"),
            registry=registry,
        )
        self.depth = Gauge(
            "neuroglot_queue_depth_tokens", "Tokens in flight, queued or running.", ("model",), registry=registry
        )
        self.waited = Histogram(
            "neuroglot_queue_seconds",
            "Time that rows waited for a batch.",
            ("model",),
            registry=registry,
            buckets=_SECONDS,
        )
        part = ("model", "component")
        self.rows = Histogram("neuroglot_batch_rows", "Rows per batch.", part, registry=registry, buckets=_ROWS)
        self.padding = Histogram(
            "neuroglot_batch_padding_ratio",
            "Fraction of the positions of a batch that are padding.",
            part,
            registry=registry,
            buckets=_RATIOS,
        )
        self.running = Histogram(
            "neuroglot_batch_seconds", "Run time of batches.", part, registry=registry, buckets=_SECONDS
        )
        self.tokens = Counter(
            "neuroglot_tokens_total",
            "Tokens of admitted requests, over all their variants.",
            ("tenant", "model"),
            registry=registry,
        )
        self.cached = Counter(
            "neuroglot_cache_tokens_total",
            "Tokens looked up in a cache, by outcome.",
            ("model", "cache", "found"),
            registry=registry,
        )
        self._tenants: set[str] = set()
        self._problem = "the server is starting"
        self._certificate_expires: Gauge | None = None
        self._series = cache(_series)
        self._known: set[str] = set()
        self._up = Gauge(
            "neuroglot_model_up", "1 if the model is healthy, 0 if a pass hangs.", ("model",), registry=registry
        )

    def started(self, method: str) -> None:
        """Count a call that started."""
        self._series(self._started, _KIND[method], _SERVICE.full_name, method).inc()

    def handled(self, method: str, code: str, seconds: float) -> None:
        """Count a call that ended with a status, such as `OK`."""
        call = (_KIND[method], _SERVICE.full_name, method)
        self._series(self._handled, *call, code).inc()
        self._series(self._handling, *call).observe(seconds)

    def held(self, size: int) -> None:
        """Set the bytes of requests and results that the transport holds."""
        self._held.set(size)

    def refused(self, tenant: str, reason: str) -> None:
        """Count a refused or failed call or group of a stream; the reason is the error's class, such as `QueueFull`."""
        self._series(self._refusals, self.tenant_label(tenant), reason).inc()

    def tenant_label(self, tenant: str) -> str:
        """Return the tenant's name, or `(others)` for all after the first thousand.

        With client certificates every common name is a tenant, so their number is unbounded.
        """
        if tenant not in self._tenants:
            if len(self._tenants) >= _MAX_TENANTS:
                return OTHER_TENANTS
            self._tenants.add(tenant)
        return tenant

    def health(self, problem: str) -> None:
        """Set why the server as a whole is unhealthy; empty while it is healthy."""
        self._problem = problem

    @property
    def problem(self) -> str:
        """The last problem set by `health`; before the first call, that the server is starting."""
        return self._problem

    def models(self, answering: Mapping[str, bool]) -> None:
        """Set the served models and whether each is healthy; removes the metrics of all other models."""
        for name in self._known - answering.keys():
            self._up.remove(name)
            with suppress(KeyError):  # it got no request
                self.depth.remove(name)
        self._known = set(answering)
        for name, answers in answering.items():
            self._up.labels(name).set(answers)

    def memory(self, of_models: Callable[[], Mapping[str, Mapping[str, MemoryUse]]], transport_bytes: int) -> None:
        """Register the metrics of memory in use and its limits.

        Args:
            of_models: returns the memory of models, by model and part (`queue`, `cache`, `uploads`). Called at each
                scrape, on another thread.
            transport_bytes: limit of the bytes that the transport holds.
        """
        self.registry.register(_Memory(of_models))
        self._transport_limit.set(transport_bytes)

    def certificate_expires(self, when: datetime) -> None:
        """Set the expiry of the server's certificate; without TLS the metric does not exist."""
        if self._certificate_expires is None:
            self._certificate_expires = Gauge(
                "neuroglot_certificate_expiry_timestamp_seconds",
                "Expiry of the server's certificate, or of one in its chain, in seconds since 1970.",
                registry=self.registry,
            )
        self._certificate_expires.set(when.timestamp())

    def of_model(self, name: str) -> Observer:
        """Return the observer of a model."""
        return _ModelMetrics(self, name)


class _ModelMetrics:
    """The metrics of one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._series = cache(_series)

    def batch(self, run: BatchRun) -> None:
        """Count a batch that has run."""
        part = (self._model, run.component)
        self._series(self._metrics.rows, *part).observe(run.rows)
        self._series(self._metrics.padding, *part).observe(1 - run.tokens / run.positions)
        self._series(self._metrics.running, *part).observe(run.seconds)
        waited = self._series(self._metrics.waited, self._model)
        for seconds in run.queue_seconds:
            waited.observe(seconds)

    def admitted(self, tenant: str, tokens: int) -> None:
        """Count the tokens of an admitted request, over all its variants."""
        self._series(self._metrics.tokens, self._metrics.tenant_label(tenant), self._model).inc(tokens)

    def queued(self, tokens: int) -> None:
        """Set the tokens in flight, queued or running."""
        self._metrics.depth.labels(self._model).set(tokens)

    def cached(self, cache: str, hit_tokens: int, missed_tokens: int) -> None:
        """Count the tokens of a step that were found in a cache, and those that were not."""
        self._series(self._metrics.cached, self._model, cache, "hit").inc(hit_tokens)
        self._series(self._metrics.cached, self._model, cache, "miss").inc(missed_tokens)


class _Memory(Collector):
    """Memory in use and its limits, collected at each scrape."""

    def __init__(self, of_models: Callable[[], Mapping[str, Mapping[str, MemoryUse]]]) -> None:
        self._of_models = of_models

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the metric families, without samples."""
        return self._families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metric families, with a sample for each part of each model."""
        used, limit = self._families()
        for model, parts in self._of_models().items():
            for part, use in parts.items():
                used.add_metric((model, part), use.bytes)
                limit.add_metric((model, part), use.limit)
        yield from (used, limit)

    def _families(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        labels = ("model", "part")
        return (
            GaugeMetricFamily("neuroglot_memory_bytes", "Memory in use.", labels=labels),
            GaugeMetricFamily("neuroglot_memory_limit_bytes", "Limit of the memory in use.", labels=labels),
        )


def _series(metric: _Metric, *labels: str) -> _Metric:
    """Return the series of these labels. Callers cache it, because the lookup takes as long as counting."""
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
"""Type of each RPC, in the terms of the grpc_server metrics of other servers."""
