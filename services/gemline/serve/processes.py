"""Workers and gateway as bare processes of this machine: started, watched, started again, stopped by process id."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

from gemline import orphan
from gemline.serve.gpus import VARIABLE, visible_gpus
from gemline.serve.settings import REDIS_URL_VARIABLE, WorkerSettings

_RESTART_DELAY_S = 1.0
_LOG_TAIL_BYTES = 2000


@dataclass(slots=True)
class Child:
    """One child process. It dies with this one, and its output goes to `log`."""

    name: str
    arguments: Sequence[str]  # of `gemline`
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process id, 0 before the start."""
        return self._process.pid if self._process else 0

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._process.returncode if self._process else None

    async def start(self) -> None:
        """Start it, in a session of its own: Ctrl-C in the terminal is ours to pass on."""
        command = orphan.command([sys.executable, "-m", "gemline.cli.main", *self.arguments], signal.SIGTERM)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )

    async def wait(self) -> int:
        """Wait for its end; the exit status."""
        return await self._process.wait() if self._process else 0

    async def stop(self, timeout_s: float) -> None:
        """SIGTERM, so that it drains; SIGKILL when it is still there after `timeout_s`."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), timeout_s)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def last_words(self) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip()


class ProcessRunner:
    """Runs every worker as a process. One that dies after the stack is ready is started again."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._children: list[Child] = []
        self._watchers: list[asyncio.Task[None]] = []

    async def start(self, workers: Mapping[WorkerSettings, int]) -> None:
        """Start that many processes of each; those with an engine take the GPUs in turn."""
        gpus = cycle(visible_gpus(os.environ))
        for settings, count in workers.items():
            for index in range(count):
                name = f"{settings.role}-{index}"
                environment = {REDIS_URL_VARIABLE: settings.redis_url}
                if settings.has_engine and (own := list(islice(gpus, settings.tensor_parallel))):
                    environment[VARIABLE] = ",".join(own)
                child = Child(name, ["worker", *settings.argv()], self._run_dir / f"{name}.log", environment)
                await child.start()
                self._children.append(child)

    def failure(self) -> str | None:
        """Why the workers cannot become ready: the last words of the first that died; None while all live."""
        for child in self._children:
            if child.exit_status is not None:
                return f"{child.name} ended with status {child.exit_status}: {child.last_words()}"
        return None

    def keep_alive(self) -> None:
        """From now on, start again what dies."""
        self._watchers = [asyncio.create_task(self._restart_forever(child)) for child in self._children]

    async def stop(self, timeout_s: float) -> None:
        """Drain and end all of them, side by side."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await asyncio.gather(*(child.stop(timeout_s) for child in self._children))

    @staticmethod
    async def _restart_forever(child: Child) -> None:
        while True:
            await child.wait()
            await asyncio.sleep(_RESTART_DELAY_S)
            await child.start()
