"""Keys and values between two workers: each transport's throughput and CPU, and what a prefill does not hide.

    python tests/bench/kv_transfer.py transports [--rounds 3] [--tokens 8192] [--dtypes bfloat16 float8_e4m3]
    python tests/bench/kv_transfer.py exposed [--shape 2b] [--quantization int8] [--tokens 8192] [--transports shm ...]

`transports`: two processes on this machine, one with the sender and one with the receiver as the workers have them,
over caches of Gemma 2 2B's shape; a prompt whose keys and values are all computed already, so nothing waits for an
engine. Counted is from the call to the end of the last import: copies out of one cache and into the other, checksums
and all. `grpc+tls` is gRPC with TLS between the processes.

`exposed`: two real workers, each with half of the cores. The share is the time from the computation of the prompt's
last chunk until everything is imported, of the prefill's.
"""

import argparse
import asyncio
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc.aio
import torch
from bench.checkpoint import SHAPES, cached
from prometheus_client.parser import text_string_to_metric_families
from support.certificates import Authority
from support.hand_gateway import HandGateway, attached
from support.still_engine import StillEngine

from gemline.cluster.embedded import EmbeddedRedis
from gemline.cluster.records import WorkerRecord
from gemline.decode.kv_import import KvImport
from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.engine.config import Gemma2Config
from gemline.engine.events import TokenEvent
from gemline.engine.options import EngineOptions
from gemline.engine.params import SamplingParams
from gemline.host import HostSettings, WorkerHost
from gemline.internal.v1.prefill_pb2 import FrameHeader, PrefillRequest
from gemline.prefill.progress import Progress
from gemline.prefill.sender import KvSender
from gemline.prefill.worker import PrefillOptions, PrefillWorker
from gemline.rpc.internal_tls import InternalTls
from gemline.rpc.options import OpenChannel, open_channel, server_options
from gemline.rpc.tls_files import TlsFiles
from gemline.serve.openmp import limit_spinning
from gemline.telemetry import setup
from gemline.transfer.fetch import Fetch
from gemline.transfer.frames import encode
from gemline.transfer.listener import Listener
from gemline.transfer.offering import Offer
from gemline.transfer.opening import Doors
from gemline.transfer.receive import FrameReader
from gemline.transfer.transports import Transport, allowed, choices, host_id

GIB = 2**30
EXPOSED = "gemline_kv_exposed_seconds_sum"
METHOD = "/gemline.internal.v1.Prefill/Prefill"


def still_engine(num_tokens: int) -> StillEngine:
    config = Gemma2Config(**vars(SHAPES["2b"]))
    torch.set_num_threads(1)
    return StillEngine(config, -(-num_tokens // 16) + 1, torch.bfloat16, block_size=16)


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def send(num_tokens: int, pipe: Pipe, files: TlsFiles) -> None:
    """The prefill worker's side: serves calls until the pipe says something."""
    engine = still_engine(num_tokens)
    seq_id = engine.prefilled(num_tokens)
    listener = Listener(engine.movers)
    listener.listen("127.0.0.1", 0)
    listener.listen_locally()
    doors = Doors(engine.movers, listener)

    async def prefill(request: PrefillRequest, context: Any) -> None:
        outlet = await doors.open(request.offer, choices(request.offer, allowed("auto"), host_id()), context.write)
        form = engine.form(request.wire_dtype)
        sender = KvSender(engine, seq_id, engine.needed(num_tokens), form, outlet, lambda: None, 30.0)
        progress = Progress()
        progress.advance(num_tokens, time.monotonic())
        progress.finish(TokenEvent(seq_id, 1))
        try:
            end = await sender.send(progress)
            await context.write(encode(FrameHeader(end=end)))
        finally:
            outlet.close()

    server = grpc.aio.server(options=server_options())
    method: grpc.RpcMethodHandler[PrefillRequest, bytes] = grpc.unary_stream_rpc_method_handler(
        prefill, request_deserializer=PrefillRequest.FromString, response_serializer=None
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("gemline.internal.v1.Prefill", {"Prefill": method}),)
    )
    ports = (
        server.add_insecure_port("127.0.0.1:0"),
        server.add_secure_port("127.0.0.1:0", InternalTls(files).server_credentials()),
    )
    await server.start()
    pipe.send(ports)
    while await asyncio.to_thread(pipe.recv):
        pipe.send(cpu_s())
    await server.stop(None)


def run_sender(num_tokens: int, pipe: Pipe, files: TlsFiles) -> None:
    asyncio.run(send(num_tokens, pipe, files))


@contextmanager
def sender_process(num_tokens: int, files: TlsFiles) -> Iterator[tuple[tuple[int, int], Pipe]]:
    """The ports without and with TLS, and a pipe that tells the process's CPU seconds to whoever asks."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=run_sender, args=(num_tokens, there, files), daemon=True)
    process.start()
    try:
        yield here.recv(), here
    finally:
        here.send(False)
        process.join(10)


@dataclass(frozen=True)
class Figures:
    """Of one transfer."""

    gib: float
    wall_s: float
    cpu_s: float  # of both processes

    @property
    def rate(self) -> float:
        return self.gib / self.wall_s


class Receiver:
    """The decode worker's side."""

    def __init__(self, num_tokens: int, pipe: Pipe) -> None:
        self._engine = still_engine(num_tokens)
        self._num_tokens = num_tokens
        self._pipe = pipe

    async def fetch(self, transport: Transport, wire_dtype: str, port: int, opened: OpenChannel) -> Figures:
        engine, form = self._engine, self._engine.form(wire_dtype)
        seq_id = engine.reserved(self._num_tokens)
        reader = FrameReader(engine.needed(self._num_tokens), form.token_bytes)
        offer = Offer(frozenset({transport} - {Transport.GRPC}), "127.0.0.1", engine.movers)
        request = PrefillRequest(offer=offer.message, wire_dtype=wire_dtype)
        async with opened(f"127.0.0.1:{port}") as channel:
            await channel.channel_ready()
            method: Any = channel.unary_stream(METHOD, PrefillRequest.SerializeToString, None)
            start_cpu_s, start_s = self._cpu_s(), time.perf_counter()
            with Fetch(method(request).__aiter__(), offer, reader) as fetch:
                await KvImport(engine, seq_id, form).run(fetch)
            wall_s = time.perf_counter() - start_s
            spent_s = self._cpu_s() - start_cpu_s
        assert fetch.transport is transport
        engine.cancel(seq_id)
        return Figures(reader.num_bytes / GIB, wall_s, spent_s)

    def _cpu_s(self) -> float:
        self._pipe.send(True)
        return cpu_s() + float(self._pipe.recv())


async def transports(options: argparse.Namespace) -> None:
    found: dict[tuple[str, str], list[Figures]] = {}
    with (
        tempfile.TemporaryDirectory() as directory,
        sender_process(options.tokens, files := Authority(Path(directory), "bench").issue("all")) as (ports, pipe),
    ):
        receiver, encrypted = Receiver(options.tokens, pipe), InternalTls(files).open_channel
        in_clear = {transport.value: transport for transport in (Transport.SHM, Transport.SOCKET, Transport.GRPC)}
        for _ in range(options.rounds + 1):  # the first is not counted: pages and pools are new
            for dtype in options.dtypes:
                for name, transport in in_clear.items():
                    figures = await receiver.fetch(transport, dtype, ports[0], open_channel)
                    found.setdefault((name, dtype), []).append(figures)
                figures = await receiver.fetch(Transport.GRPC, dtype, ports[1], encrypted)
                found.setdefault(("grpc+tls", dtype), []).append(figures)
    print(f"{'':9}{'wire':>12}{'MiB':>7}{'GiB/s':>8}{'least':>7}{'most':>7}{'CPU s/GiB':>11}")
    for (way, dtype), all_figures in found.items():
        counted = all_figures[1:]
        rates = sorted(one.rate for one in counted)
        cpu = statistics.median(one.cpu_s / one.gib for one in counted)
        mib = counted[0].gib * 1024
        print(f"{way:9}{dtype:>12}{mib:7.0f}{statistics.median(rates):8.2f}{rates[0]:7.2f}{rates[-1]:7.2f}{cpu:11.2f}")


@dataclass(frozen=True)
class WorkerProcess:
    """A real worker in a process of its own. The decode worker's does what the pipe says: which transport to use."""

    role: str
    shape: str
    engine: EngineOptions
    redis_url: str

    async def serve(self, pipe: Pipe) -> None:
        model_dir, telemetry = cached(self.shape), setup(self.role)
        worker: PrefillWorker | DecodeWorker = (
            PrefillWorker(PrefillOptions(model_dir, self.shape, self.engine))
            if self.role == "prefill"
            else DecodeWorker(DecodeOptions(model_dir, self.shape, self.engine, "always"))
        )
        host = WorkerHost(worker, HostSettings(self.redis_url, metrics_port=None), telemetry)
        pipe.send(await host.start())
        while (transport := await asyncio.to_thread(pipe.recv)) is not None:
            if isinstance(worker, DecodeWorker) and worker._client is not None:
                worker._client._transports = allowed(transport)
            pipe.send((telemetry.render_metrics().decode(), cpu_s()))
        await host.stop()

    def run(self, pipe: Pipe) -> None:
        limit_spinning()
        asyncio.run(self.serve(pipe))


@contextmanager
def worker_process(worker: WorkerProcess) -> Iterator[tuple[WorkerRecord, Pipe]]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=worker.run, args=(there,), daemon=True)
    process.start()
    try:
        yield here.recv(), here
    finally:
        here.send(None)
        process.join(30)


def sample(pipe: Pipe, transport: str, name: str) -> tuple[float, float]:
    """Sum of a metric of the worker behind the pipe, and its CPU seconds; from now on it uses that transport."""
    pipe.send(transport)
    text, spent_s = pipe.recv()
    families = text_string_to_metric_families(text)
    return sum(each.value for family in families for each in family.samples if each.name == name), spent_s


async def exposed(options: argparse.Namespace) -> None:
    engine = EngineOptions(
        dtype="bfloat16",
        quantization=options.quantization,
        num_kv_blocks=options.tokens // 16 + 8,
        max_batch_tokens=options.chunk,
        num_threads=options.threads,
    )
    token_ids = [2, *(1024 + 7 * n % 20000 for n in range(1, options.tokens - 2))]
    params = SamplingParams(max_tokens=1, temperature=0.0)
    with tempfile.TemporaryDirectory() as directory:
        redis = EmbeddedRedis(Path(directory))
        url = redis.start()
        try:
            with (
                worker_process(WorkerProcess("prefill", options.shape, engine, url)),
                worker_process(WorkerProcess("decode", options.shape, engine, url)) as (record, pipe),
            ):
                async with attached(record.address, record.epoch) as gateway:
                    await ask_all(gateway, pipe, token_ids, params, options)
        finally:
            redis.stop()


async def ask_all(
    gateway: HandGateway, pipe: Pipe, token_ids: list[int], params: SamplingParams, options: argparse.Namespace
) -> None:
    print(f"{len(token_ids)} tokens of {options.shape}, {options.quantization}, {options.threads} threads a worker")
    print(f"{'':8}{'prefill s':>10}{'exposed s':>10}{'share':>8}{'MiB':>7}{'load':>6}")
    for _ in range(options.rounds):
        for transport in options.transports:
            before_s, _ = sample(pipe, transport, EXPOSED)
            before_bytes, _ = sample(pipe, transport, "gemline_kv_received_bytes_total")
            start_s = time.perf_counter()
            answer = await gateway.submit(len(gateway.answers), token_ids, params)
            await asyncio.wait_for(answer.ended.wait(), 1800)
            took_s = time.perf_counter() - start_s
            exposed_s = sample(pipe, transport, EXPOSED)[0] - before_s
            mib = (sample(pipe, transport, "gemline_kv_received_bytes_total")[0] - before_bytes) / 2**20
            prefill_s = took_s - exposed_s
            share, load = exposed_s / prefill_s, os.getloadavg()[0]
            row = f"{transport:8}{prefill_s:10.1f}{exposed_s:10.3f}{share:8.2%}{mib:7.0f}{load:6.1f}"
            print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("transports", "exposed"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    parser.add_argument("--quantization", choices=("none", "int8", "int4"), default="int8")
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--transports", nargs="+", default=["shm", "socket", "grpc"])
    options = parser.parse_args()
    asyncio.run(transports(options) if options.what == "transports" else exposed(options))


if __name__ == "__main__":
    main()
