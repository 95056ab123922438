"""What dies, leaves or dawdles while others are served: they notice nothing, and nothing is left of it."""

import json
import os
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import pieces
from support.decode_workers import decode_workers, num_requests, wait_for_workers
from support.load import asking, wait_for_more
from support.metrics import metric, metric_at
from support.processes import num_open_files, num_threads, resident_bytes
from support.sse import Told, complete
from support.stack import Running, start_stack

from gemline.client import Client
from gemline.cluster.records import Role, WorkerRecord

pytestmark = pytest.mark.slow

WHOLE: dict[str, Any] = {"prompt": "Once", "max_tokens": 900, "ignore_eos": True, "temperature": 0.0}
FREED_LIMIT_S = 60.0
MAX_GROWTH_BYTES = 64 * 2**20
MAX_MORE = 4  # files and threads: some come with their first use; what leaks comes with every request
SOAK_S = float(os.environ.get("GEMLINE_SOAK_S", "15"))  # 600 by hand


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two of each but of prefill workers; `gemline up` starts again what dies."""
    exact = ("--runner", "process", "--dtype", "float32", "--threads", "1", "--first-prompt", "")
    running = start_stack(tmp_path_factory.mktemp("load"), *exact, "--tokenization", "2", "--decode", "2")
    yield running
    running.stop()


def test_tokenization_workers_that_are_killed_over_and_over_cost_nobody_an_answer(stack: Running) -> None:
    with asking(stack) as num_answers:
        for _ in range(4):
            workers = wait_for_workers(stack, 2, Role.TOKENIZATION)
            wait_for_more(num_answers, 4)
            os.kill(workers[0].pid, signal.SIGKILL)
            wait_for_more(num_answers, 8)


@pytest.mark.parametrize("role", [Role.TOKENIZATION, Role.PREFILL], ids=lambda role: role.value)
def test_a_worker_that_is_told_to_go_costs_nobody_an_answer(stack: Running, role: Role) -> None:
    num = 2 if role is Role.TOKENIZATION else 1
    with asking(stack) as num_answers:
        leaving = wait_for_workers(stack, num, role)[0]
        os.kill(leaving.pid, signal.SIGTERM)
        wait_for_more(num_answers, 20)
    assert leaving.pid not in [worker.pid for worker in wait_for_workers(stack, num, role)]


def test_every_worker_is_restarted_in_turn_and_nobody_notices(stack: Running) -> None:
    with asking(stack) as num_answers:
        for role, num in ((Role.TOKENIZATION, 2), (Role.PREFILL, 1), (Role.DECODE, 2)):
            there = wait_for_workers(stack, num, role)
            for leaving in there:
                os.kill(leaving.pid, signal.SIGTERM)
                wait_for_more(num_answers, 4)
                wait_until_replaced(stack, leaving, num)
            assert {it.worker_id for it in there}.isdisjoint(it.worker_id for it in wait_for_workers(stack, num, role))


def wait_until_replaced(stack: Running, leaving: WorkerRecord, num: int) -> None:
    """Until it has gone and as many as before are there."""
    limit_s = time.monotonic() + FREED_LIMIT_S
    while leaving.worker_id in {it.worker_id for it in wait_for_workers(stack, num, leaving.role)}:
        assert time.monotonic() < limit_s, f"{leaving.worker_id} is still there"


def num_free(stack: Running) -> float:
    """KV blocks of all decode workers that nobody holds."""
    return sum(metric_at(one.metrics_address, "gemline_kv_free_blocks") for one in wait_for_workers(stack, 2))


def all_freed(stack: Running, free: float) -> bool:
    workers = decode_workers(stack)
    held = sum(num_requests(worker) or 0 for worker in workers)
    return held == 0 and sum(metric_at(one.metrics_address, "gemline_kv_free_blocks") for one in workers) == free


def wait_until_freed(stack: Running, free: float) -> None:
    limit_s = time.monotonic() + FREED_LIMIT_S
    while not all_freed(stack, free):
        assert time.monotonic() < limit_s, "something is still held"
        time.sleep(0.02)


def test_a_gateway_that_is_killed_leaves_nothing_behind_and_the_sdk_goes_on_at_another(
    stack: Running, tmp_path: Path
) -> None:
    free, key, url = num_free(stack), stack.ready["api_key"], stack.ready["redis_url"]
    with pieces.gateway(tmp_path, url, key) as dying, ExitStack() as ending:
        both = f"ipv4:{dying.ready['grpc']},{stack.ready['grpc']}"
        client = ending.enter_context(Client(both, api_key=key))
        options: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True, "temperature": 0.0}
        expected = client.generate("Once", **options)
        assert metric(dying, "gateway", "gemline_gateway_requests_total") == 1
        answers = []
        asked = threading.Thread(target=lambda: answers.append(client.generate("Once", **options)))
        asked.start()
        while not metric(dying, "gateway", "gemline_gateway_active_streams"):
            time.sleep(0.01)

        def kill(event: int) -> None:
            if event == 20:
                dying.process.kill()

        with suppress(Exception):  # what this one gets is httpx's to say
            complete(dying, kill, **WHOLE)
        killed_s = time.monotonic()
        while metric(stack, "gateway", "gemline_gateway_active_streams") < 1:
            time.sleep(0.005)
        # One is asked again by the SDK; of the other nothing is left long before its answer would have been whole.
        while sum(num_requests(worker) or 0 for worker in decode_workers(stack)) > 1:
            assert asked.is_alive()
        freed_s = time.monotonic()
        asked.join()
        print(f"freed {freed_s - killed_s:.2f} s after the kill, answered after {time.monotonic() - killed_s:.2f} s")
        assert [answer.text for answer in answers] == [expected.text]
    wait_until_freed(stack, free)


class RawClient:
    """One streamed answer over a socket that takes little."""

    def __init__(self, stack: Running, **options: Any) -> None:
        host, port = stack.ready["http"].removeprefix("http://").split(":")
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(60)
        self._socket.connect((host, int(port)))
        body = json.dumps({"model": stack.model, "stream": True, **options}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stack.ready['api_key']}\r\n"
        self._socket.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    def read(self, num_bytes: int) -> bytes:
        return self._socket.recv(num_bytes)

    def abort(self) -> None:
        """As when the machine on the other side is switched off and its router says so."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


def test_of_a_connection_that_is_reset_nothing_is_left(stack: Running) -> None:
    free = num_free(stack)
    clients = [RawClient(stack, **WHOLE) for _ in range(4)]
    for client in clients:
        assert client.read(12) == b"HTTP/1.1 200"
    beside: list[Told] = []
    neighbour = threading.Thread(target=lambda: beside.append(complete(stack, **WHOLE)))
    neighbour.start()
    while metric(stack, "gateway", "gemline_gateway_active_streams") < 5:
        time.sleep(0.005)
    for client in clients:
        client.abort()
    while sum(num_requests(worker) or 0 for worker in decode_workers(stack)) > 1:
        assert neighbour.is_alive(), "they were computed to their end"
    neighbour.join()
    assert beside[0].error is None
    wait_until_freed(stack, free)


def test_clients_that_read_a_byte_a_second_hold_up_nobody_and_fill_no_memory(stack: Running) -> None:
    free, gateway = num_free(stack), stack.pids("gateway")[0]
    fat, short = WHOLE | {"logprobs": 5}, WHOLE | {"max_tokens": 100, "prompt": "Beside"}
    alone = complete(stack, **short)

    def beside() -> float:
        """How long the quickest of three answers takes, none of which is another than alone."""
        told = [complete(stack, **short) for _ in range(3)]
        assert [each.answer for each in told] == [alone.answer] * 3
        return min(each.times_s[-1] - each.times_s[0] for each in told)

    quick = [threading.Thread(target=complete, args=(stack,), kwargs=fat) for _ in range(4)]
    for reader in quick:
        reader.start()
    while metric(stack, "gateway", "gemline_gateway_active_streams") < len(quick):
        time.sleep(0.005)
    beside_quick = beside()
    for reader in quick:
        reader.join()
    before = resident_bytes(gateway)
    slow = [RawClient(stack, **fat) for _ in range(4)]
    for client in slow:
        assert client.read(1) == b"H"
    beside_slow = beside()
    for _ in range(3):
        time.sleep(1)
        for client in slow:
            assert client.read(1)
    wait_until_freed(stack, free)  # the engine waits for none of them
    growth = resident_bytes(gateway) - before
    print(f"beside quick readers {beside_quick:.2f} s, beside slow ones {beside_slow:.2f} s, {growth / 2**20:.1f} MiB")
    assert beside_slow < 3 * beside_quick
    assert growth < MAX_GROWTH_BYTES
    for client in slow:
        client.abort()
    while metric(stack, "gateway", "gemline_gateway_active_streams"):
        time.sleep(0.02)


@dataclass(frozen=True)
class Holdings:
    """What the processes of a platform hold when nobody asks anything."""

    files: dict[int, int]  # by process id, and so below
    threads: dict[int, int]
    resident: dict[int, int]
    free_blocks: float
    requests: float

    @classmethod
    def of(cls, stack: Running) -> "Holdings":
        pids = [worker.pid for role in Role for worker in wait_for_workers(stack, 1, role)] + stack.pids("gateway")
        return cls(
            {pid: num_open_files(pid) for pid in pids},
            {pid: num_threads(pid) for pid in pids},
            {pid: resident_bytes(pid) for pid in pids},
            num_free(stack),
            sum(num_requests(worker) or 0 for role in Role for worker in wait_for_workers(stack, 1, role))
            + metric(stack, "gateway", "gemline_gateway_active_streams"),
        )


def use_everything(stack: Running, until_s: float) -> Counter[str]:
    """Whole and broken off, streamed and not, in sessions and without, right and wrong; what was done how often."""
    done: Counter[str] = Counter()
    with Client(stack.ready["grpc"], api_key=stack.ready["api_key"]) as client:
        while time.monotonic() < until_s:
            number = done.total()
            sampling: dict[str, Any] = {"max_tokens": 20 + number % 50, "temperature": 1.0, "seed": number}
            match number % 6:
                case 0:
                    assert client.generate(f"Once {number} " * (1 + number % 80), **sampling).text is not None
                case 1:
                    assert complete(stack, prompt=f"Twice {number}", **sampling).error is None
                case 2:
                    with client.generate_stream("Once", ignore_eos=True, **sampling) as stream:
                        next(stream)
                case 3:
                    raw = RawClient(stack, **WHOLE)
                    raw.read(1)
                    raw.abort()
                case 4:
                    session = client.sessions.create()
                    for text in ("Hello", "And then?"):
                        session.chat(text, **sampling)
                    session.fork().delete()
                    session.delete()
                case _:
                    assert complete(stack, prompt="Once", max_tokens=-1).error is not None
            done[f"way {number % 6}"] += 1
    return done


def test_after_a_while_of_everything_nothing_has_grown(stack: Running) -> None:
    def use(seconds: float) -> Counter[str]:
        with ThreadPoolExecutor(4) as pool:
            users = [pool.submit(use_everything, stack, time.monotonic() + seconds) for _ in range(4)]
            return sum((user.result() for user in users), Counter())

    use(SOAK_S / 5)
    before = Holdings.of(stack)
    print(use(SOAK_S))
    limit_s = time.monotonic() + FREED_LIMIT_S
    while (after := Holdings.of(stack)) and (
        (after.free_blocks, after.requests) != (before.free_blocks, 0)
        or any(after.files[pid] > num + MAX_MORE for pid, num in before.files.items())
    ):
        assert time.monotonic() < limit_s, f"{before} has become {after}"
        time.sleep(0.2)
    grown = {pid: after.resident[pid] - num_bytes for pid, num_bytes in before.resident.items()}
    print(f"files {after.files}, threads {after.threads}, grown by {grown} bytes of {after.resident}")
    assert all(after.threads[pid] <= num + MAX_MORE for pid, num in before.threads.items())
    assert max(grown.values()) < MAX_GROWTH_BYTES
