"""Starts a server in a process of its own, waits until it serves, tells its memory, and ends it with all it started."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from bench.process_tree import memory_bytes, tree
from bench.servers import Place, Server

_START_LIMIT_S = 900.0
_STOP_LIMIT_S = 30.0


@dataclass(frozen=True)
class Running:
    """A server that serves."""

    server: Server
    url: str
    pid: int
    start_s: float  # from its start until it was ready

    @contextmanager
    def asked(self) -> Iterator[None]:
        """While it is asked it runs; a peer is halted before and after, for some are busy even when idle.

        Ours is not: its workers tell Redis every few seconds that they are there, and that is all they do.
        """
        self.resume()
        try:
            yield
        finally:
            self.halt()

    def halt(self) -> None:
        if self.server.family != "gemline":
            _signal(tree(self.pid), signal.SIGSTOP)

    def resume(self) -> None:
        _signal(tree(self.pid), signal.SIGCONT)

    def memory_bytes(self) -> tuple[int, int]:
        """What all its processes hold together, and the largest of them alone (PSS)."""
        sizes = [memory_bytes(pid) for pid in tree(self.pid)]
        return sum(sizes), max(sizes)


@contextmanager
def started(server: Server, model: Path, scratch: Path, num_cached_tokens: int) -> Iterator[Running]:
    """Raises RuntimeError with the end of its log when it does not come up."""
    scratch.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    launch = server.launch(Place(model, port, scratch, num_cached_tokens))
    log = scratch / "server.log"
    begun_s = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            launch.command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **launch.environment}
        )
    try:
        _wait_until_ready(process, port, launch.ready_path, log)
        yield Running(server, f"http://127.0.0.1:{port}", process.pid, time.monotonic() - begun_s)
    finally:
        _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
    limit_s = time.monotonic() + _START_LIMIT_S
    while not _answers(port, path):
        if process.poll() is not None or time.monotonic() > limit_s:
            raise RuntimeError(f"it does not serve; the end of its log:\n{log.read_text()[-3000:]}")
        time.sleep(0.1)


def _answers(port: int, path: str) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asked to end; what is left after its time is killed, its children with it."""
    pids = tree(process.pid)
    _signal(pids, signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_LIMIT_S)
        return
    _signal(pids, signal.SIGKILL)
    process.wait()


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
