"""Everything on one machine: Redis, workers, gateway, in the order they need each other, and down again in reverse."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Protocol

from gemline.cluster.connection import connect
from gemline.cluster.embedded import EmbeddedRedis
from gemline.cluster.keys import new_key
from gemline.cluster.records import Role, WorkerRecord
from gemline.cluster.workers import WorkersView
from gemline.errors import ConfigurationError
from gemline.serve.gateway_process import GatewayProcess
from gemline.serve.models import find_model
from gemline.serve.processes import ProcessRunner
from gemline.serve.ready import ProcessInfo, Ready
from gemline.serve.run_dir import make_run_dir
from gemline.serve.settings import StackSettings, WorkerSettings, resolve

_POLL_S = 0.2
_STOP_TIMEOUT_S = 40.0


class Runner(Protocol):
    """What starts, watches and stops the workers."""

    async def start(self, workers: Mapping[WorkerSettings, int]) -> None:
        """Start that many of each; need not wait until they are ready."""

    def failure(self) -> str | None:
        """Why they cannot become ready; None while they still may."""

    def keep_alive(self) -> None:
        """All were ready once: from now on replace what dies."""

    async def stop(self, timeout_s: float) -> None:
        """Drain and end them, and all that came with them."""


class Stack:
    """One local installation. `report` gets a line of progress whenever there is news."""

    def __init__(self, settings: StackSettings, report: Callable[[str], None] = lambda line: None) -> None:
        self._settings = resolve(settings)
        self._report = report
        self._run_dir = make_run_dir()
        self._running = AsyncExitStack()
        self._gateway: GatewayProcess | None = None

    async def start(self) -> Ready:
        """Start everything; when a part fails, stop what was started and raise.

        Raises ConfigurationError with the failing part's own words.
        """
        limit_s = self._settings.start_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._start()
        except TimeoutError:
            await self.stop()
            raise ConfigurationError(f"not ready after {limit_s:.0f} s; the logs are in {self._run_dir}") from None
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> None:
        """Return when the stack can no longer serve: its gateway has ended."""
        if self._gateway is not None:
            await self._gateway.child.wait()

    async def stop(self) -> None:
        """Stop everything, the gateway first, so that no request meets a worker that has gone."""
        await self._running.aclose()

    async def _start(self) -> Ready:
        settings = self._settings
        source = await asyncio.to_thread(find_model, settings.model)
        name = settings.served_model_name or source.name
        self._report(f"model {name} from {source.model_dir}")
        redis_url = settings.redis_url or await self._start_redis()
        runner: Runner = self._make_runner()
        self._running.push_async_callback(runner.stop, _STOP_TIMEOUT_S)
        api_key, keys_file = self._make_key()
        admin_key = self._admin_key()
        gateway = await self._start_gateway(redis_url, keys_file, admin_key)
        self._report(f"starting workers ({settings.runner}): " + ", ".join(_count_words(settings.counts)))
        workers = {
            settings.worker(role, model_dir=source.model_dir, served_model_name=name, redis_url=redis_url): count
            for role, count in settings.counts.items()
        }
        await runner.start(workers)
        records = await self._wait_for_workers(runner, gateway, redis_url, name)
        await gateway.wait_until_ready()
        runner.keep_alive()
        ready = Ready(
            http=gateway.http,
            grpc=gateway.grpc,
            api_key=api_key,
            model=name,
            redis_url=redis_url,
            log_dir=str(self._run_dir),
            processes=(
                ProcessInfo("gateway", gateway.child.pid, gateway.address, gateway.address),
                *(ProcessInfo(it.role.value, it.pid, it.address, it.metrics_address, it.backend) for it in records),
            ),
            dtype=next(it.model.dtype for it in records if it.role is Role.DECODE),
            quantization=next(it.model.quantization for it in records if it.role is Role.DECODE),
            kv_dtype=next(it.model.kv_dtype for it in records if it.role is Role.DECODE),
            admin=gateway.admin,
            admin_key="" if settings.admin_key else admin_key,
        )
        if settings.ready_file is not None:
            ready.write(settings.ready_file)
            self._running.callback(ready.remove, settings.ready_file)
        return ready

    async def _start_redis(self) -> str:
        redis = EmbeddedRedis(self._run_dir)
        url = redis.start()  # on this thread: it dies with the thread that started it
        self._running.callback(redis.stop)
        self._report(f"redis at {url.rpartition('@')[2]}")
        return url

    def _make_runner(self) -> Runner:
        if self._settings.runner == "process":
            return ProcessRunner(self._run_dir)
        from gemline.serve.ray_runner import RayRunner

        return RayRunner(self._run_dir, self._settings.scaling)

    def _make_key(self) -> tuple[str, Path]:
        if self._settings.keys_file is not None:
            return "", self._settings.keys_file
        _, api_key = new_key()
        keys_file = self._run_dir / "keys"
        keys_file.touch(mode=0o600)
        keys_file.write_text(f"local:{api_key}\n")
        self._running.callback(keys_file.unlink, missing_ok=True)
        return api_key, keys_file

    def _admin_key(self) -> str:
        """The operator's; a new one where only a port was given; empty for no admin API."""
        if self._settings.admin_key or self._settings.admin_port is None:
            return self._settings.admin_key
        return f"ga_{secrets.token_hex(24)}"

    async def _start_gateway(self, redis_url: str, keys_file: Path, admin_key: str) -> GatewayProcess:
        self._gateway = GatewayProcess(self._settings, self._run_dir, redis_url, keys_file, admin_key)
        await self._gateway.start()
        self._running.push_async_callback(self._gateway.child.stop, _STOP_TIMEOUT_S)
        return self._gateway

    async def _wait_for_workers(
        self, runner: Runner, gateway: GatewayProcess, redis_url: str, name: str
    ) -> list[WorkerRecord]:
        """All workers of this stack, once each holds a lease."""
        async with aclosing(connect(redis_url)) as redis:
            view = WorkersView(redis)
            await view.start()
            try:
                return await self._poll(view, runner, gateway, name)
            finally:
                await view.stop()

    async def _poll(self, view: WorkersView, runner: Runner, gateway: GatewayProcess, name: str) -> list[WorkerRecord]:
        seen: set[str] = set()
        while True:
            for part in (runner, gateway):
                if reason := await asyncio.to_thread(part.failure):
                    raise ConfigurationError(reason)
            records = [record for role in Role for record in view.workers(role, name)]
            for record in records:
                if record.worker_id not in seen:
                    seen.add(record.worker_id)
                    self._report(f"{record.role.value} ready at {record.address}{_computing(record)}")
            if all(len(view.workers(role, name)) >= count for role, count in self._settings.counts.items()):
                return records
            await asyncio.sleep(_POLL_S)


def _computing(record: WorkerRecord) -> str:
    """How it computes, to be put behind its address; nothing for a worker without an engine."""
    if not record.backend:
        return ""
    weights = "" if record.model.quantization == "none" else f", {record.model.quantization} weights"
    cache = "" if record.model.kv_dtype == record.model.dtype else f", {record.model.kv_dtype} keys and values"
    return f": {record.model.dtype}{weights}{cache}, backend {record.backend}"


def _count_words(counts: Mapping[Role, int]) -> list[str]:
    return [f"{count} {role.value}" for role, count in counts.items() if count]
