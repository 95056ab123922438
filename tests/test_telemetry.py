import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Generator, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from gemline import telemetry

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
NOT_SAMPLED = f"00-{TRACE_ID}-b7ad6b7169203331-00"


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """An OTLP collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: dict[str, trace_pb2.Span] = {}
        self.services: set[str] = set()
        self.metrics: set[str] = set()
        self._lock = threading.Lock()

    def Export(self, request: Any, context: Any) -> Any:
        with self._lock:
            if isinstance(request, metrics_service_pb2.ExportMetricsServiceRequest):
                for resource in request.resource_metrics:
                    self.metrics |= {metric.name for scope in resource.scope_metrics for metric in scope.metrics}
                return metrics_service_pb2.ExportMetricsServiceResponse()
            for traced in request.resource_spans:
                self.services |= {a.value.string_value for a in traced.resource.attributes if a.key == "service.name"}
                self.spans |= {span.name: span for scope in traced.scope_spans for span in scope.spans}
            return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    kept = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)  # type: ignore[no-untyped-call]
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(kept, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    yield kept
    server.stop(None)


def test_a_child_span_belongs_to_the_trace_of_the_traceparent_it_was_given(collector: Collector) -> None:
    ours = telemetry.setup("decode")
    with ours.span("decode", TRACEPARENT, {"gemline.request_id": "req_1"}) as span:
        assert span.traceparent.split("-")[1] == TRACE_ID
        assert span.traceparent != TRACEPARENT
    ours.shutdown()
    sent = collector.spans["decode"]
    assert (sent.trace_id.hex(), sent.parent_span_id.hex()) == (TRACE_ID, "b7ad6b7169203331")
    assert {a.key: a.value.string_value for a in sent.attributes} == {"gemline.request_id": "req_1"}
    assert collector.services == {"gemline-decode"}


def test_one_trace_spans_two_processes_and_the_spans_inside_each(collector: Collector) -> None:
    gateway, decode = telemetry.setup("gateway"), telemetry.setup("decode")
    with gateway.span("request"), gateway.span("route"):
        carried = gateway.inject()
    with decode.span("decode", carried):
        assert decode.inject() != ""
    assert gateway.inject() == decode.inject() == ""
    gateway.shutdown()
    decode.shutdown()
    request, route, decoded = (collector.spans[name] for name in ("request", "route", "decode"))
    assert request.trace_id == route.trace_id == decoded.trace_id
    assert route.parent_span_id == request.span_id
    assert decoded.parent_span_id == route.span_id
    assert collector.services == {"gemline-gateway", "gemline-decode"}


def test_a_span_can_outlive_the_block_that_began_it(collector: Collector) -> None:
    ours = telemetry.setup("decode")
    span = ours.span("decode", TRACEPARENT)
    assert ours.inject() == ""
    span.set("gemline.num_tokens", 3)
    span.end()
    span.end()
    ours.shutdown()
    assert collector.spans["decode"].attributes[0].value.int_value == 3


def test_a_failed_span_says_what_kind_of_error_but_not_its_message(collector: Collector) -> None:
    ours = telemetry.setup("decode")
    with pytest.raises(ValueError, match="a user's text"), ours.span("decode"):
        raise ValueError("a user's text")
    ours.shutdown()
    sent = collector.spans["decode"]
    assert (sent.status.code, sent.status.message) == (trace_pb2.Status.STATUS_CODE_ERROR, "ValueError")
    assert b"a user's text" not in sent.SerializeToString()


def test_a_generator_that_is_closed_elsewhere_ends_its_span(collector: Collector) -> None:
    ours = telemetry.setup("gateway")

    def answer() -> Generator[int, None, None]:
        with ours.span("answer"):
            yield 1

    generator = answer()
    threads = [threading.Thread(target=next, args=(generator,)), threading.Thread(target=generator.close)]
    for thread in threads:
        thread.start()
        thread.join()
    ours.shutdown()
    assert "answer" in collector.spans


def test_a_caller_that_does_not_sample_is_not_traced_here_either(collector: Collector) -> None:
    ours = telemetry.setup("decode")
    with ours.span("decode", NOT_SAMPLED) as span:
        assert span.traceparent.endswith("-00")
    ours.shutdown()
    assert collector.spans == {}


@pytest.mark.parametrize("traceparent", ["", "nonsense", "00-0-0-01", "é" * 1000])
def test_a_broken_traceparent_begins_a_trace_of_its_own(collector: Collector, traceparent: str) -> None:
    ours = telemetry.setup("decode")
    with ours.span("decode", traceparent):
        pass
    ours.shutdown()
    assert collector.spans["decode"].parent_span_id == b""


def test_metrics_are_exported_too(collector: Collector) -> None:
    ours = telemetry.setup("decode")
    ours.meter.create_counter("gemline_tokens").add(1)
    ours.shutdown()
    assert "gemline_tokens" in collector.metrics


@pytest.mark.parametrize(("name", "value"), [("OTEL_TRACES_EXPORTER", "none"), ("OTEL_SDK_DISABLED", "true")])
def test_tracing_can_be_turned_off_by_the_standard_variables(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert not telemetry.setup("decode").tracing


def test_a_protocol_that_is_not_ours_turns_export_off_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    assert not telemetry.setup("decode").tracing
    assert "http/protobuf" in caplog.text


def test_a_collector_that_is_not_there_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    ours = telemetry.setup("decode")
    started_s = time.monotonic()
    with ours.span("decode"):
        pass
    span_s = time.monotonic() - started_s
    ours.shutdown()
    whole_s = time.monotonic() - started_s
    assert span_s < 0.1 * whole_s  # to end it waits for an export that fails
    assert whole_s < 5


def test_off_a_span_hands_the_callers_trace_context_on() -> None:
    ours = telemetry.setup("decode")
    with ours.span("decode", TRACEPARENT, {"a": 1}) as span:
        span.set("b", 2)
        assert span.traceparent == TRACEPARENT
    assert ours.inject() == ""
    with ours.span("decode") as span:
        assert span.traceparent == ""
    ours.shutdown()


def test_off_a_span_costs_a_tenth_of_one_that_is_recorded(collector: Collector) -> None:
    recorded, unrecorded = telemetry.setup("decode"), telemetry.off()

    def cost_s(ours: telemetry.Telemetry) -> float:
        started_s = time.perf_counter()
        for _ in range(1000):
            with ours.span("decode"):
                pass
        return time.perf_counter() - started_s

    pairs = [(cost_s(unrecorded), cost_s(recorded)) for _ in range(5)]
    recorded.shutdown()
    assert min(off_s for off_s, _ in pairs) < 0.1 * min(on_s for _, on_s in pairs)


def test_the_metrics_of_two_telemetries_do_not_meet() -> None:
    one, other = telemetry.setup("one"), telemetry.setup("other")
    one.meter.create_counter("gemline_tokens").add(5)
    assert b"gemline_tokens" in one.render_metrics()
    assert b"gemline_tokens" not in other.render_metrics()


def test_metrics_are_served_with_their_units() -> None:
    ours = telemetry.setup("decode")
    ours.meter.create_counter("gemline_tokens", description="Tokens generated").add(5, {"kind": "completion"})
    ours.latency("gemline_step_duration", "Duration of an engine step").record(0.02)
    address = ours.start_metrics_server("127.0.0.1", 0)
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    assert 'gemline_tokens_total{kind="completion"} 5.0' in lines
    assert 'gemline_step_duration_seconds_bucket{le="0.01"} 0.0' in lines
    assert 'gemline_step_duration_seconds_bucket{le="0.025"} 1.0' in lines
    ours.shutdown()
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://{address}/metrics")


def test_a_taken_metrics_port_is_an_os_error() -> None:
    first, second = telemetry.setup("one"), telemetry.setup("other")
    port = int(first.start_metrics_server("127.0.0.1", 0).split(":")[1])
    with pytest.raises(OSError):
        second.start_metrics_server("127.0.0.1", port)
    first.shutdown()


@pytest.mark.parametrize(("name", "value"), [("OTEL_METRICS_EXPORTER", "none"), ("OTEL_SDK_DISABLED", "true")])
def test_metrics_can_be_turned_off_by_the_standard_variables(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    ours = telemetry.setup("decode")
    ours.meter.create_counter("gemline_tokens").add(5)
    ours.latency("gemline_step_duration", "Duration of an engine step").record(0.02)
    assert ours.render_metrics() == b""


def test_a_service_name_from_the_environment_wins(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    ours = telemetry.setup("decode")
    ours.span("decode").end()
    ours.shutdown()
    assert collector.services == {"ours"}


def test_a_process_that_exports_nothing_does_not_load_the_exporter() -> None:
    code = "import sys; from gemline import telemetry; telemetry.setup('x'); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "opentelemetry.sdk" in modules
    assert "opentelemetry.exporter.otlp" not in modules
