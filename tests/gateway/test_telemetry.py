"""What a gateway tells of a request: one span in the caller's trace, and counts that add up."""

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from support.eventually import eventually
from support.in_process import MODEL, TENANT, InProcess, in_process

from gemline.errors import GemlineError, InvalidRequest, Unavailable
from gemline.gateway.answer import Answer
from gemline.gateway.core import new_request_id
from gemline.gateway.metrics import ITL_SAMPLE
from gemline.gateway.requests import GenerationRequest, Prompt, SamplingOptions
from gemline.telemetry import Telemetry, setup

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


async def begin(platform: InProcess, traceparent: str = "", **sampling: Any) -> Answer:
    options = SamplingOptions(**({"temperature": 0.0, "ignore_eos": True, "max_tokens": 40} | sampling))
    request = GenerationRequest(new_request_id(), MODEL, Prompt(text="Hello"), options)
    return await platform.gateway.generate(TENANT, request, traceparent=traceparent)


async def read(answer: Answer) -> None:
    async for _ in answer:
        pass


class Traced:
    """A platform and the spans that have ended in it."""

    def __init__(self, platform: InProcess, exporter: InMemorySpanExporter) -> None:
        self.platform = platform
        self._exporter = exporter

    def span(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self._exporter.get_finished_spans() if span.name == name]
        return span

    def names(self) -> set[str]:
        return {span.name for span in self._exporter.get_finished_spans()}


@pytest.fixture
async def traced(redis_url: str, tiny_checkpoint: Path) -> AsyncIterator[Traced]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with in_process(redis_url, tiny_checkpoint, Telemetry(provider, None, CollectorRegistry())) as platform:
        yield Traced(platform, exporter)


async def test_one_trace_spans_gateway_tokenization_and_decode(traced: Traced) -> None:
    await read(await begin(traced.platform, TRACEPARENT))
    await eventually(lambda: traced.names() >= {"gateway", "tokenize", "decode"})
    gateway = traced.span("gateway")
    assert gateway.parent is not None
    assert format(gateway.parent.span_id, "016x") == "00f067aa0ba902b7"
    for child in ("tokenize", "decode"):
        span = traced.span(child)
        assert span.context is not None
        assert format(span.context.trace_id, "032x") == TRACE_ID
        assert gateway.context is not None
        assert span.parent is not None
        assert span.parent.span_id == gateway.context.span_id


@pytest.mark.parametrize("traceparent", ["", "nonsense", "00-ß-ü-01", TRACEPARENT + "\r\nx: y"])
async def test_without_a_wellformed_trace_the_gateway_begins_one(traced: Traced, traceparent: str) -> None:
    await read(await begin(traced.platform, traceparent))
    assert traced.span("gateway").parent is None


async def test_the_span_says_how_much_and_how_it_ended_and_no_text(traced: Traced) -> None:
    await read(await begin(traced.platform))
    attributes = dict(traced.span("gateway").attributes or {})
    request_id = attributes.pop("gemline.request_id")
    assert str(request_id).startswith("req_")
    assert attributes == {
        "gemline.prompt_tokens": attributes["gemline.prompt_tokens"],
        "gemline.completion_tokens": 40,
        "gemline.outcome": "length",
        "gemline.predicted_hit_tokens": 0,
        "gemline.actual_hit_tokens": 0,
    }


def let_go(platform: InProcess) -> None:
    """The worker ends its streams as at the end of a drain; it is the only one, and so gets its request again."""
    platform.decode_worker._requests.close_streams(Unavailable("the worker is shutting down"))


async def test_the_span_says_how_often_the_request_moved_and_why_last(traced: Traced) -> None:
    answer = await begin(traced.platform)
    await anext(answer)
    let_go(traced.platform)
    await read(answer)
    attributes = dict(traced.span("gateway").attributes or {})
    assert attributes["gemline.migrations"] == 1
    assert attributes["gemline.migration_reason"] == "drained"
    assert attributes["gemline.completion_tokens"] == 40


async def test_a_refused_request_has_a_span_too(traced: Traced) -> None:
    with pytest.raises(InvalidRequest):
        await begin(traced.platform, temperature=9.0)
    span = traced.span("gateway")
    assert dict(span.attributes or {})["gemline.outcome"] == "invalid_request"
    assert not span.status.is_ok


@pytest.fixture
async def measured(redis_url: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[InProcess]:
    monkeypatch.delenv("OTEL_METRICS_EXPORTER", raising=False)
    async with in_process(redis_url, tiny_checkpoint, setup("gateway")) as platform:
        yield platform


def figures(platform: InProcess, name: str) -> dict[str, float]:
    """Samples of a metric, by labels."""
    text = platform.gateway.telemetry.render_metrics().decode()
    found = re.findall(rf"^{name}({{[^}}]*}})? ([0-9.e+-]+)$", text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def total(platform: InProcess, name: str, label: str = "") -> float:
    return sum(value for labels, value in figures(platform, name).items() if label in labels)


async def test_requests_are_counted_once_by_how_they_ended(measured: InProcess) -> None:
    await read(await begin(measured))
    leaving = await begin(measured)
    await anext(leaving)
    assert total(measured, "gemline_gateway_active_streams") == 1
    await leaving.aclose()
    await leaving.aclose()
    for wrong in ({"temperature": 9.0}, {"max_tokens": 999}):
        with pytest.raises(GemlineError):
            await begin(measured, **wrong)
    name = "gemline_gateway_requests_total"
    for outcome in ("length", "canceled", "invalid_request", "context_length_exceeded"):
        assert total(measured, name, f'outcome="{outcome}"') == 1, outcome
    assert total(measured, name) == 4
    assert total(measured, "gemline_gateway_active_streams") == 0


async def test_tokens_and_latencies_add_up(measured: InProcess) -> None:
    answers = [await begin(measured, max_tokens=2 * ITL_SAMPLE) for _ in range(2)]
    for answer in answers:
        await read(answer)
    read_tokens = sum(answer.prompt_tokens for answer in answers)
    assert total(measured, "gemline_gateway_prompt_tokens_total") == read_tokens
    assert total(measured, "gemline_gateway_completion_tokens_total") == 4 * ITL_SAMPLE
    assert total(measured, "gemline_gateway_time_to_first_token_seconds_count") == 2


async def test_what_the_gateway_adds_is_told_apart_from_the_wait_for_a_turn(measured: InProcess) -> None:
    begun_s = time.monotonic()
    await read(await begin(measured, max_tokens=2))
    taken_s = time.monotonic() - begun_s
    names = [f"gemline_gateway_{name}_seconds" for name in ("queue_time", "time_to_worker", "time_to_first_token")]
    assert [total(measured, f"{name}_count") for name in names] == [1, 1, 1]
    waited_s, added_s, first_s = (total(measured, f"{name}_sum") for name in names)
    assert waited_s >= 0 and added_s > 0
    assert waited_s + added_s <= first_s <= taken_s


async def test_a_request_that_moved_is_counted_and_its_tokens_once(measured: InProcess) -> None:
    answer = await begin(measured)
    await anext(answer)
    let_go(measured)
    await read(answer)
    assert total(measured, "gemline_gateway_migrations_total", 'reason="drained"') == 1
    assert total(measured, "gemline_gateway_migrations_total") == 1
    assert total(measured, "gemline_gateway_completion_tokens_total") == 40
    assert total(measured, "gemline_gateway_prompt_tokens_total") == answer.prompt_tokens


async def test_a_name_that_a_client_makes_up_does_not_become_a_label(measured: InProcess) -> None:
    options = SamplingOptions()
    with pytest.raises(GemlineError):
        await measured.gateway.generate(
            TENANT, GenerationRequest(new_request_id(), "made-up", Prompt(text="x"), options)
        )
    text = measured.gateway.telemetry.render_metrics().decode()
    assert "made-up" not in text
    assert 'model="unknown"' in text
