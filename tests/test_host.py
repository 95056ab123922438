import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import pytest

from gemline import errors, telemetry
from gemline.cluster.connection import connect
from gemline.cluster.records import ModelCard, Role, State
from gemline.cluster.workers import WorkersView
from gemline.host import HostSettings, WorkerContext, WorkerHost
from gemline.internal.v1 import tokenization_pb2, tokenization_pb2_grpc
from gemline.rpc.options import open_channel
from gemline.rpc.status import from_rpc_error
from gemline.signals import Signals


class LengthWorker(tokenization_pb2_grpc.TokenizationServicer):
    """A worker that can be checked by hand: a text's only token is its length. Keeps what its host does to it."""

    role = Role.TOKENIZATION
    card = ModelCard("length", "ab", 16, 17, (0,), "cd")
    backend = "counting"

    def __init__(self) -> None:
        self.log: list[str] = []
        self.epoch = 0
        self.broken = False
        self.context: WorkerContext | None = None

    async def start(self, context: WorkerContext) -> None:
        self.context = context
        self.log.append("start")
        assert not context.lease_valid()

    def register(self, server: grpc.aio.Server) -> None:
        tokenization_pb2_grpc.add_TokenizationServicer_to_server(self, server)

    def epoch_changed(self, epoch: int) -> None:
        self.epoch = epoch
        self.log.append("epoch")

    def load(self) -> tuple[int, int]:
        return 2, 3

    async def signals(self) -> Signals:
        return Signals(num_running=2, num_waiting=3)

    async def drain(self, timeout_s: float) -> None:
        self.log.append("drain")

    async def stop(self) -> None:
        self.log.append("stop")

    def check_health(self) -> None:
        if self.broken:
            raise errors.InternalError("the worker is broken")

    async def Encode(self, request: tokenization_pb2.EncodeRequest, context: object) -> tokenization_pb2.EncodeResponse:
        if request.epoch != self.epoch:
            raise errors.StaleEpoch(f"epoch {request.epoch} was meant, this is {self.epoch}")
        return tokenization_pb2.EncodeResponse(token_ids=[len(request.text)])

    async def FetchTokenizer(
        self, request: tokenization_pb2.FetchTokenizerRequest, context: object
    ) -> AsyncIterator[tokenization_pb2.FetchTokenizerResponse]:
        yield tokenization_pb2.FetchTokenizerResponse(data=b"{}")


@pytest.fixture
async def view(redis_url: str) -> AsyncIterator[WorkersView]:
    redis = connect(redis_url)
    view = WorkersView(redis, resync_s=0.05)
    await view.start()
    yield view
    await view.stop()
    await redis.aclose()


async def until_num_workers(view: WorkersView, num: int) -> None:
    async with asyncio.timeout(5):
        while len(view.workers(Role.TOKENIZATION)) != num:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def encode(address: str, epoch: int, text: str) -> list[int]:
    async with open_channel(address) as channel:
        stub = tokenization_pb2_grpc.TokenizationStub(channel)
        answer = await stub.Encode(tokenization_pb2.EncodeRequest(epoch=epoch, text=text))
    return list(answer.token_ids)


async def test_a_worker_is_found_and_called_and_gone_again(redis_url: str, view: WorkersView) -> None:
    worker = LengthWorker()
    host = WorkerHost(worker, HostSettings(redis_url))
    record = await host.start()
    assert (record.role, record.model, record.pid) == (Role.TOKENIZATION, worker.card, os.getpid())
    assert record.epoch == worker.epoch > 0
    await until_num_workers(view, 1)
    (seen,) = view.workers(Role.TOKENIZATION)
    assert await encode(seen.address, seen.epoch, "four") == [4]
    assert worker.context is not None and worker.context.lease_valid()
    host.check_health()
    await host.drain()
    await host.stop()
    await until_num_workers(view, 0)
    assert not worker.context.lease_valid()
    assert worker.log == ["start", "epoch", "drain", "stop"]


async def test_a_call_that_means_another_life_is_refused(redis_url: str) -> None:
    host = WorkerHost(LengthWorker(), HostSettings(redis_url))
    record = await host.start()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await encode(record.address, record.epoch - 1, "four")
    assert type(from_rpc_error(caught.value)) is errors.StaleEpoch
    await host.stop()


async def test_a_worker_that_drains_says_so_to_everybody(redis_url: str, view: WorkersView) -> None:
    host = WorkerHost(LengthWorker(), HostSettings(redis_url))
    await host.start()
    await host.drain()
    await until_num_workers(view, 1)
    async with asyncio.timeout(5):
        while view.workers(Role.TOKENIZATION)[0].state is not State.DRAINING:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await host.stop()


class SlowDrainWorker(LengthWorker):
    async def drain(self, timeout_s: float) -> None:
        await asyncio.sleep(60)


async def test_a_drain_that_takes_too_long_is_cut_short(redis_url: str) -> None:
    host = WorkerHost(SlowDrainWorker(), HostSettings(redis_url, drain_timeout_s=0.1))
    await host.start()
    started_s = time.monotonic()
    await host.drain()
    assert time.monotonic() - started_s < 2
    await host.stop()


class FailingWorker(LengthWorker):
    async def start(self, context: WorkerContext) -> None:
        await super().start(context)
        raise errors.CheckpointError("model.safetensors: tensor model.norm.weight is missing")


async def test_a_worker_that_cannot_start_is_stopped_and_never_registered(redis_url: str, view: WorkersView) -> None:
    worker = FailingWorker()
    host = WorkerHost(worker, HostSettings(redis_url))
    with pytest.raises(errors.CheckpointError, match=r"model\.norm\.weight"):
        await host.start()
    assert worker.log == ["start", "stop"]
    assert view.workers(Role.TOKENIZATION) == ()
    with pytest.raises(errors.Unavailable):
        host.check_health()
    await host.stop()


async def test_without_a_redis_nothing_is_loaded() -> None:
    worker = LengthWorker()
    with pytest.raises(errors.Unavailable, match=r"Redis at 127\.0\.0\.1:1 "):
        await WorkerHost(worker, HostSettings("redis://127.0.0.1:1")).start()
    assert worker.log == []


@pytest.mark.parametrize("option", ["port", "metrics_port"])
async def test_a_taken_port_is_named_and_the_worker_is_stopped(redis_url: str, option: str) -> None:
    worker = LengthWorker()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = HostSettings(redis_url, **{option: port})
        with pytest.raises(errors.ConfigurationError, match=str(port)) as caught:
            await WorkerHost(worker, settings).start()
    assert caught.value.param == option
    assert worker.log == ["start", "stop"]


async def test_a_broken_worker_is_unhealthy(redis_url: str) -> None:
    worker = LengthWorker()
    host = WorkerHost(worker, HostSettings(redis_url))
    await host.start()
    worker.broken = True
    with pytest.raises(errors.InternalError, match="broken"):
        host.check_health()
    await host.stop()


async def test_metrics_are_where_the_record_says(redis_url: str) -> None:
    ours = telemetry.setup("tokenization")
    ours.meter.create_counter("gemline_encoded_tokens").add(7)
    host = WorkerHost(LengthWorker(), HostSettings(redis_url), ours)
    record = await host.start()
    url = f"http://{record.metrics_address}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read())
    assert b"gemline_encoded_tokens_total 7.0" in text
    await host.stop()


async def test_metrics_can_be_left_out(redis_url: str) -> None:
    host = WorkerHost(LengthWorker(), HostSettings(redis_url, metrics_port=None))
    assert (await host.start()).metrics_address == ""
    await host.stop()


async def test_stopping_leaves_no_task_behind(redis_url: str) -> None:
    before = asyncio.all_tasks()
    host = WorkerHost(LengthWorker(), HostSettings(redis_url))
    await host.start()
    await host.stop()
    await host.stop()
    assert {task for task in asyncio.all_tasks() - before if "gemline" in task.get_name()} == set()


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        (HostSettings("", bind="10.0.0.7"), "10.0.0.7"),
        (HostSettings("", bind="10.0.0.7", advertise="decode-0.example"), "decode-0.example"),
    ],
)
def test_the_address_others_see_is_the_advertised_one(settings: HostSettings, host: str) -> None:
    assert settings.advertised_host == host


def test_every_interface_is_not_an_address_to_advertise() -> None:
    assert HostSettings("", bind="0.0.0.0").advertised_host not in ("0.0.0.0", "", "127.0.1.1")


PROCESS = """
import asyncio, gc, importlib.util, sys
spec = importlib.util.spec_from_file_location("test_host", sys.argv[1])
test_host = importlib.util.module_from_spec(spec)
spec.loader.exec_module(test_host)
from gemline.host import HostSettings, WorkerHost, run_until_signal

class Worker(getattr(test_host, sys.argv[3])):
    def register(self, server):
        super().register(server)
        self.broken = sys.argv[4:] == ["broken"]

    async def stop(self):
        # What it started with is not looked through again; what is new is.
        print("stopped", *self.log, "tidy" if gc.isenabled() and gc.get_freeze_count() else "untidy", flush=True)

asyncio.run(run_until_signal(WorkerHost(Worker(), HostSettings(sys.argv[2]))))
"""


@contextlib.contextmanager
def running(redis_url: str, worker: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", PROCESS, str(Path(__file__)), redis_url, worker, *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_drains_and_stops_on_a_signal(redis_url: str, view: WorkersView, number: int) -> None:
    with running(redis_url, "LengthWorker") as process:
        await until_num_workers(view, 1)
        process.send_signal(number)
        output, complaints = await asyncio.to_thread(process.communicate, timeout=10)
    assert (process.returncode, output, complaints) == (0, "stopped start epoch drain tidy\n", "")
    await until_num_workers(view, 0)


async def test_a_second_signal_ends_the_drain(redis_url: str, view: WorkersView) -> None:
    with running(redis_url, "SlowDrainWorker") as process:
        await until_num_workers(view, 1)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        output, _ = await asyncio.to_thread(process.communicate, timeout=10)
    assert (process.returncode, output) == (0, "stopped start epoch tidy\n")


async def test_a_process_whose_worker_breaks_ends_with_an_error(redis_url: str) -> None:
    with running(redis_url, "LengthWorker", "broken") as process:
        output, _ = await asyncio.to_thread(process.communicate, timeout=10)
    assert process.returncode != 0
    assert output == "stopped start epoch tidy\n"
