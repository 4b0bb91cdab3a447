"""OpenTelemetry spans, one per call and one per group of a stream, sent to a collector over OTLP.

Service name and sampling are set by the standard variables, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER and so on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from neuroglot.v1 import service_pb2
from neuroglot_server.telemetry.transport_observer import Describe

_SERVICE: str = service_pb2.DESCRIPTOR.services_by_name["NeuroglotService"].full_name


class Tracing:
    """Creates spans. A call with a `traceparent` in its metadata continues its caller's trace."""

    def __init__(self, exporter: SpanExporter) -> None:
        """Send spans through an exporter, on a background thread."""
        ours = Resource({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "neuroglot")})
        self._provider = TracerProvider(resource=Resource.create().merge(ours), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("neuroglot_server")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, metadata: Mapping[str, str | bytes] | None = None) -> Iterator[Describe]:
        """Create a span for the duration of a block: of a call if metadata is given, else a child of the current span.

        Messages of errors are not recorded, because they may contain parts of a prompt.
        """
        if metadata is None:
            span = self._tracer.start_span(name)
        else:
            span = self._tracer.start_span(
                f"{_SERVICE}/{name}",
                context=self._propagator.extract({key: str(value) for key, value in metadata.items()}),
                kind=SpanKind.SERVER,
                attributes={"rpc.system": "grpc", "rpc.service": _SERVICE, "rpc.method": name},
            )
        with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            yield lambda attributes: span.set_attributes(
                {f"neuroglot.{name}": value for name, value in attributes.items()}
            )

    def close(self) -> None:
        """Send the remaining spans, and stop."""
        self._provider.shutdown()


def to_collector(endpoint: str) -> Tracing:
    """Create tracing to an OTLP collector over gRPC, such as `http://127.0.0.1:4317`; `https` uses TLS."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return Tracing(OTLPSpanExporter(endpoint=endpoint))
