"""Traces and metrics of one process, by OpenTelemetry and its standard OTEL_* variables. Knows nothing it measures.

Tracing is on when an OTLP endpoint is set (OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT); off, a
span does nothing. Metrics are kept for the process's own Prometheus endpoint, and exported too when an endpoint is set;
OTEL_METRICS_EXPORTER=none or OTEL_SDK_DISABLED=true turns them off, and instruments then do nothing.
Nothing is registered globally: two telemetries in one process do not meet.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Protocol, Self

from opentelemetry import trace
from opentelemetry.metrics import Histogram, Meter, NoOpMeter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, start_http_server

AttributeValue = str | bool | int | float
Attributes = Mapping[str, AttributeValue]

METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST

# OpenTelemetry's default buckets are meant for milliseconds.
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_SCOPE = "gemline"
_SHUTDOWN_TIMEOUT_S = 3.0
_PROPAGATOR = TraceContextTextMapPropagator()

logger = logging.getLogger(__name__)


class Span(Protocol):
    """A piece of work in a trace. Either used with `with`, or ended by hand when it outlives a block."""

    @property
    def traceparent(self) -> str:
        """W3C trace context for whatever this work causes, here or in another process; empty when not traced."""

    def set(self, name: str, value: AttributeValue) -> None:
        """Adds an attribute; never the text of a prompt or an answer."""

    def end(self, error: BaseException | None = None) -> None:
        """Ends it, as failed when there is an error. A second call does nothing."""

    def __enter__(self) -> Self:
        """Makes it the current span: one begun inside without a traceparent becomes its child."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends it."""


class _NoSpan:
    """A span while tracing is off: hands on the caller's trace context, so that others may trace."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def set(self, name: str, value: AttributeValue) -> None:
        pass

    def end(self, error: BaseException | None = None) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class _RecordedSpan:
    __slots__ = ("_current", "_span", "_token", "traceparent")

    def __init__(self, span: trace.Span, current: ContextVar[str]) -> None:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
        self.traceparent = carrier.get("traceparent", "")
        self._span = span
        self._current = current
        self._token: Token[str] | None = None

    def set(self, name: str, value: AttributeValue) -> None:
        self._span.set_attribute(name, value)

    def end(self, error: BaseException | None = None) -> None:
        if isinstance(error, Exception):  # being cancelled is no failure
            self._span.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))
        if self._span.is_recording():
            self._span.end()

    def __enter__(self) -> Self:
        self._token = self._current.set(self.traceparent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            with contextlib.suppress(ValueError):  # a generator may be closed in another task than it began in
                self._current.reset(self._token)
            self._token = None
        self.end(error)


class Telemetry:
    """What a process uses to tell of itself; made by `setup`."""

    def __init__(
        self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None, registry: CollectorRegistry
    ) -> None:
        self._tracer_provider = tracer_provider
        self._tracer = None if tracer_provider is None else tracer_provider.get_tracer(_SCOPE)
        self._meter_provider = meter_provider
        self._registry = registry
        self._current: ContextVar[str] = ContextVar("gemline-traceparent", default="")
        self._stop_server: Callable[[], None] | None = None
        self._untraced = _NoSpan("")
        self.meter: Meter = NoOpMeter(_SCOPE) if meter_provider is None else meter_provider.get_meter(_SCOPE)

    @property
    def tracing(self) -> bool:
        """Whether spans are recorded."""
        return self._tracer is not None

    def span(self, name: str, traceparent: str = "", attributes: Attributes | None = None) -> Span:
        """Begins a span, now; a child of `traceparent`, or without one of the current span."""
        if self._tracer is None:
            return _NoSpan(traceparent) if traceparent else self._untraced
        parent = _PROPAGATOR.extract({"traceparent": traceparent or self._current.get()})
        return _RecordedSpan(self._tracer.start_span(name, parent, attributes=attributes), self._current)

    def inject(self) -> str:
        """W3C traceparent of the current span; empty when there is none."""
        return "" if self._tracer is None else self._current.get()

    def latency(self, name: str, description: str) -> Histogram:
        """A histogram of seconds; `name` is gemline_*, the unit is added to it where it is read."""
        return self.meter.create_histogram(
            name, unit="s", description=description, explicit_bucket_boundaries_advisory=LATENCY_BUCKETS_S
        )

    def render_metrics(self) -> bytes:
        """All metrics in Prometheus text, of METRICS_CONTENT_TYPE."""
        return generate_latest(self._registry)

    def start_metrics_server(self, host: str, port: int) -> str:
        """Serves /metrics from a thread of its own; gives host:port. Raises OSError when the port is taken."""
        server, thread = start_http_server(port, host, self._registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._stop_server = stop
        return f"{host}:{server.server_port}"

    def shutdown(self) -> None:
        """Sends what is left and stops; blocks, but a collector that does not answer for a few seconds only."""
        if self._stop_server is not None:
            self._stop_server()
            self._stop_server = None
        providers = [each for each in (self._tracer_provider, self._meter_provider) if each is not None]
        stops = [threading.Thread(target=provider.shutdown, daemon=True) for provider in providers]
        for stop in stops:
            stop.start()
        deadline_s = time.monotonic() + _SHUTDOWN_TIMEOUT_S
        for stop in stops:
            stop.join(max(0.0, deadline_s - time.monotonic()))


def setup(process: str) -> Telemetry:
    """Telemetry of this process, as the environment asks for it. `process` names it: gateway, decode, ..."""
    registry = CollectorRegistry()
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Telemetry(None, None, registry)
    resource = _resource(process)
    return Telemetry(_tracer_provider(resource), _meter_provider(resource, registry), registry)


def off() -> Telemetry:
    """Telemetry that keeps nothing."""
    return Telemetry(None, None, CollectorRegistry())


def _resource(process: str) -> Resource:
    attributes = {"service.instance.id": f"{socket.gethostname()}:{os.getpid()}"}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = f"gemline-{process}"
    return Resource.create(attributes)


def _exports(signal: str) -> bool:
    """Whether `signal` (TRACES or METRICS) goes to an OTLP collector."""
    if os.environ.get(f"OTEL_{signal}_EXPORTER", "otlp") != "otlp":
        return False
    names = (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    if not any(os.environ.get(name) for name in names):
        return False
    names = (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next((os.environ[name] for name in names if os.environ.get(name)), "grpc")
    if protocol != "grpc":
        logger.warning("OTLP export of %s is off: the protocol asked for is %s, ours is grpc", signal.lower(), protocol)
    return protocol == "grpc"


def _tracer_provider(resource: Resource) -> TracerProvider | None:
    if not _exports("TRACES"):
        return None
    # Imported here: it costs a tenth of a second that a process which exports nothing need not spend.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _meter_provider(resource: Resource, registry: CollectorRegistry) -> MeterProvider | None:
    if os.environ.get("OTEL_METRICS_EXPORTER", "").strip().lower() == "none":
        return None
    from opentelemetry.exporter.prometheus import PrometheusMetricReader

    readers: list[MetricReader] = [PrometheusMetricReader(scope_info_enabled=False, registry=registry)]
    if _exports("METRICS"):
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    return MeterProvider(readers, resource, shutdown_on_exit=False)
