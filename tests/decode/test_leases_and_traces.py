"""What a decode worker does when its lease is over, when it drains, and what its traces tell."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import redis.asyncio
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from support.hand_gateway import HandGateway, attached
from support.workers import becomes_true, hosted, measure, measuring

from gemline.cluster.connection import connect
from gemline.cluster.workers import WorkersView
from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.engine.options import EngineOptions
from gemline.engine.params import SamplingParams
from gemline.host import HostSettings, WorkerContext, WorkerHost
from gemline.prefill.worker import PrefillOptions, PrefillWorker
from gemline.rpc.options import server_options
from gemline.rpc.status import ErrorInterceptor
from gemline.telemetry import Telemetry

ENGINE = EngineOptions(num_kv_blocks=64, max_batch_tokens=64, max_running=8, num_threads=1)
GREEDY = SamplingParams(max_tokens=8, temperature=0.0)
ENDLESS = SamplingParams(max_tokens=240, temperature=0.0)
PROMPT = [2, 300, 301, 302]
TRACEPARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


class Lease:
    """A lease that ends when the test says so."""

    def __init__(self) -> None:
        self.valid = True

    def __call__(self) -> bool:
        return self.valid


@asynccontextmanager
async def served(worker: DecodeWorker, context: WorkerContext) -> AsyncIterator[str]:
    await worker.start(context)
    worker.epoch_changed(1)
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=server_options())
    worker.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
        await worker.stop()


@pytest.fixture
def lease() -> Lease:
    return Lease()


@pytest.fixture
def telemetry() -> Telemetry:
    return measuring()


@pytest.fixture
def worker(tiny_checkpoint: Path) -> DecodeWorker:
    return DecodeWorker(DecodeOptions(tiny_checkpoint, "tiny", ENGINE, "always"))


@pytest.fixture
async def address(worker: DecodeWorker, redis_url: str, lease: Lease, telemetry: Telemetry) -> AsyncIterator[str]:
    client = connect(redis_url)
    async with served(worker, WorkerContext(WorkersView(client), telemetry, lease)) as address:
        yield address
    await client.aclose()


@pytest.fixture
async def gateway(address: str) -> AsyncIterator[HandGateway]:
    async with attached(address, 1) as gateway:
        yield gateway


def all_free(telemetry: Telemetry) -> bool:
    return measure(telemetry, "gemline_kv_free_blocks", kind="global") == 64


async def test_a_worker_whose_lease_is_over_says_nothing_more(
    gateway: HandGateway, lease: Lease, telemetry: Telemetry
) -> None:
    answer = await gateway.submit(1, PROMPT, ENDLESS)
    await answer.first.wait()

    lease.valid = False

    assert await asyncio.wait_for(gateway.broken, 10) is grpc.StatusCode.FAILED_PRECONDITION
    assert not answer.ended.is_set()
    assert await becomes_true(lambda: all_free(telemetry))


async def test_nobody_attaches_to_a_worker_whose_lease_is_over(address: str, lease: Lease) -> None:
    lease.valid = False

    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        async with attached(address, 1):
            pass
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_new_epoch_after_a_lost_lease_ends_the_streams_of_the_old_one(
    gateway: HandGateway, worker: DecodeWorker, lease: Lease, address: str
) -> None:
    lease.valid = False
    worker.epoch_changed(2)
    lease.valid = True

    assert await asyncio.wait_for(gateway.broken, 10) is grpc.StatusCode.FAILED_PRECONDITION
    async with attached(address, 2) as again:
        assert len((await again.generate(1, PROMPT, GREEDY)).token_ids) == 8


async def test_a_new_epoch_while_the_lease_stands_leaves_running_streams_alone(
    gateway: HandGateway, worker: DecodeWorker
) -> None:
    answer = await gateway.submit(1, PROMPT, ENDLESS)
    await answer.first.wait()

    worker.epoch_changed(2)

    await asyncio.wait_for(answer.ended.wait(), 30)
    assert len(answer.token_ids) == ENDLESS.max_tokens


async def test_a_draining_worker_finishes_what_it_has_and_takes_nothing_new(
    gateway: HandGateway, worker: DecodeWorker
) -> None:
    running = await gateway.submit(1, PROMPT, ENDLESS)
    await running.first.wait()
    drained = asyncio.create_task(worker.drain(30))
    await asyncio.sleep(0)

    refused = await gateway.generate(2, PROMPT, GREEDY)

    assert refused.error == "unavailable"
    await drained
    assert await becomes_true(running.ended.is_set)
    assert len(running.token_ids) == ENDLESS.max_tokens


async def test_a_worker_that_stops_still_refuses_who_has_not_heard_of_it(tiny_checkpoint: Path, redis_url: str) -> None:
    worker = DecodeWorker(DecodeOptions(tiny_checkpoint, "tiny", ENGINE, "always"))
    host = WorkerHost(worker, HostSettings(redis_url, metrics_port=None))
    record = await host.start()
    async with attached(record.address, record.epoch) as gateway:
        await host.drain()
        stopped = asyncio.create_task(host.stop())
        await asyncio.sleep(0.1)

        late = await gateway.generate(1, PROMPT, GREEDY)  # a refusal is passed over, a broken stream is not

        assert late.error == "unavailable"
        await stopped


async def test_draining_gives_up_when_its_time_is_over(gateway: HandGateway, worker: DecodeWorker) -> None:
    answer = await gateway.submit(1, PROMPT, ENDLESS)
    await answer.first.wait()

    with pytest.raises(TimeoutError):
        await worker.drain(0.001)


async def test_a_stopped_engine_is_unhealthy_and_its_requests_get_an_error(
    gateway: HandGateway, worker: DecodeWorker
) -> None:
    worker.check_health()
    await worker.stop()

    with pytest.raises(Exception, match="the engine has stopped"):
        worker.check_health()
    assert await asyncio.wait_for(gateway.broken, 10) is grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    yield exporter
    exporter.shutdown()


def tracing(exporter: InMemorySpanExporter) -> Telemetry:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Telemetry(provider, None, CollectorRegistry())


async def test_one_trace_spans_decode_and_prefill(
    tiny_checkpoint: Path, redis_url: str, spans: InMemorySpanExporter
) -> None:
    prefill = PrefillWorker(PrefillOptions(tiny_checkpoint, "tiny", ENGINE))
    decode = DecodeWorker(DecodeOptions(tiny_checkpoint, "tiny", ENGINE, "always"))
    async with (
        hosted(prefill, redis_url, tracing(spans)),
        hosted(decode, redis_url, tracing(spans)) as record,
        attached(record.address, record.epoch) as gateway,
    ):
        await gateway.generate(1, PROMPT, GREEDY)
        await gateway.generate(2, PROMPT, GREEDY, traceparent=TRACEPARENT)
        assert await becomes_true(lambda: len(spans.get_finished_spans()) >= 3)

    by_name = {span.name: span for span in spans.get_finished_spans()}
    assert len(spans.get_finished_spans()) == len(by_name) == 3  # none for the request that nobody traces
    assert {f"{span.context.trace_id:032x}" for span in by_name.values() if span.context} >= {TRACEPARENT[3:35]}
    parents = {name: span.parent.span_id if span.parent else 0 for name, span in by_name.items()}
    ids = {name: span.context.span_id for name, span in by_name.items() if span.context}
    assert parents["decode"] == int(TRACEPARENT[36:52], 16)
    assert parents["decode.fetch_kv"] == ids["decode"]
    assert parents["prefill"] == ids["decode.fetch_kv"]


async def test_redis_is_not_asked_while_tokens_flow(
    tiny_checkpoint: Path, redis_url: str, telemetry: Telemetry
) -> None:
    worker = DecodeWorker(DecodeOptions(tiny_checkpoint, "tiny", ENGINE, "always"))
    async with (
        hosted(worker, redis_url, telemetry) as record,
        attached(record.address, record.epoch) as gateway,
        redis.asyncio.Redis.from_url(redis_url) as client,
    ):
        before = (await client.info("stats"))["total_commands_processed"]
        await asyncio.gather(*(gateway.generate(handle, PROMPT, ENDLESS) for handle in range(8)))
        asked = (await client.info("stats"))["total_commands_processed"] - before
        num_steps = measure(telemetry, "gemline_engine_steps_total")

    assert num_steps >= 240
    assert asked < num_steps / 4  # the lease and the view go on by themselves
