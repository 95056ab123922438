"""One trace spans gateway, tokenization, prefill and decode, exported over OTLP by the standard variables."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from support.stack import start_stack

pytestmark = pytest.mark.slow


class Collector(TraceServiceServicer):
    """Keeps what exporters send: (trace id, process, span name)."""

    def __init__(self) -> None:
        self.spans: set[tuple[bytes, str, str]] = set()
        self.address = ""

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        for resource in request.resource_spans:
            names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans |= {(span.trace_id, names["service.name"], span.name) for span in scope.spans}
        return ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[Collector]:
    servicer = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]  # generated without types
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    server.stop(0).wait()


def test_one_trace_spans_all_four_processes(collector: Collector, tmp_path: Path) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    running = start_stack(tmp_path, "--runner", "process", "--first-prompt", "", environment=environment)
    try:
        running.openai().completions.create(model=running.model, prompt="Once upon a time. " * 100, max_tokens=4)
        limit = time.monotonic() + 15
        wanted = {"gateway", "tokenization", "prefill", "decode"}
        while time.monotonic() < limit:
            by_trace: dict[bytes, set[str]] = {}
            for trace_id, process, _ in collector.spans.copy():
                by_trace.setdefault(trace_id, set()).add(process.removeprefix("gemline-"))
            if any(wanted <= processes for processes in by_trace.values()):
                return
            time.sleep(0.1)
        raise AssertionError(f"no trace spans {wanted}: {collector.spans}")
    finally:
        running.stop()
