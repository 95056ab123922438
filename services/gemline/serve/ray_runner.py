"""A Ray cluster of this machine alone, with the workers as Serve deployments."""

import asyncio
import logging
import os
import re
import secrets
import shutil
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path

from gemline.cluster.records import Role
from gemline.serve.autoscaling import Scaling
from gemline.serve.gpus import check_enough, visible_gpus
from gemline.serve.settings import WorkerSettings

# Replicas share the cores of one machine; the engine's threads, not Ray's accounting, divide them.
_CPUS_PER_REPLICA = 0.01


class RayRunner:
    """Starts Ray with files and ports of its own, so that it neither joins nor disturbs another cluster."""

    def __init__(self, run_dir: Path, scaling: Mapping[Role, Scaling] | None = None) -> None:
        """Roles without `scaling` keep their number of workers."""
        self._scaling = scaling or {}
        self._run_dir = run_dir
        # Ray's socket paths must stay under 107 bytes: a short folder of its own.
        self._temp_dir = Path(tempfile.mkdtemp(prefix="gl-"))
        self._num_gpus = len(visible_gpus(os.environ))
        self._starting: asyncio.Future[None] | None = None
        self._stopping = False

    async def start(self, workers: Mapping[WorkerSettings, int]) -> None:
        """Start Ray, then deploy; does not wait for the replicas. Raises ConfigurationError when GPUs are too few."""
        placed = {it.role: count * it.tensor_parallel for it, count in workers.items() if it.has_placed_ranks}
        check_enough(placed, self._num_gpus)
        self._starting = asyncio.ensure_future(asyncio.to_thread(self._start, workers))
        await asyncio.shield(self._starting)  # half a Ray could not be taken down: `stop` waits for the whole
        _take_back_sigterm()

    def _start(self, workers: Mapping[WorkerSettings, int]) -> None:
        num_ranks = sum(count * settings.tensor_parallel for settings, count in workers.items() if settings.has_engine)
        num_others = sum(count for settings, count in workers.items() if not settings.has_engine)
        self._start_ray(num_processes=num_ranks + num_others + 1)  # Serve's controller is one too
        if not self._stopping:
            self._deploy(workers)

    def _start_ray(self, num_processes: int) -> None:
        token_file = self._run_dir / "ray-token"
        token_file.touch(mode=0o600)
        token_file.write_text(secrets.token_hex(32))
        os.environ |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray's word for "this machine alone": its processes listen on 127.0.0.1, not on every interface.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        import ray
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        ray.init(
            address="local",
            num_gpus=self._num_gpus,
            num_cpus=num_processes,  # so many processes Ray starts ahead of the replicas that will be in them
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            _temp_dir=str(self._temp_dir),
            object_store_memory=80 * 1024 * 1024,
        )
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})

    def _deploy(self, workers: Mapping[WorkerSettings, int]) -> None:
        from ray import serve

        from gemline.serve.ray_app import application_name, deployment

        serve.run_many(
            [
                serve.RunTarget(
                    deployment(
                        settings,
                        count,
                        num_cpus=_CPUS_PER_REPLICA,
                        num_gpus=settings.num_gpus if self._num_gpus else 0,
                        scaling=self._scaling.get(Role(settings.role)),
                    ),
                    name=application_name(Role(settings.role)),
                    route_prefix=None,
                )
                for settings, count in workers.items()
                if count
            ],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )

    def failure(self) -> str | None:
        """Why a deployment cannot become ready, in its replica's own words; None while it still may."""
        from ray import serve
        from ray.serve.schema import ApplicationStatus

        broken = {ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY}
        for name, application in serve.status().applications.items():
            if application.status in broken:
                messages = [deployment.message for deployment in application.deployments.values()]
                return f"{name}: {_cause(' '.join(messages) or application.message)}"
        return None

    def keep_alive(self) -> None:
        """Serve starts again what dies; there is nothing to do."""

    async def stop(self, timeout_s: float) -> None:
        """Drain the replicas, end Ray, remove its files."""
        self._stopping = True
        try:
            if self._starting is not None:
                await asyncio.gather(self._starting, return_exceptions=True)
                await asyncio.to_thread(self._shutdown)
        finally:
            shutil.rmtree(self._temp_dir, ignore_errors=True)

    @staticmethod
    def _shutdown() -> None:
        import ray
        from ray import serve

        if not ray.is_initialized():  # it could not be started; to ask Serve anything would start it again
            return
        try:
            # Not serve.shutdown(): it kills its controller, which Ray then reports as a crash on the terminal.
            for name in serve.status().applications:
                serve.delete(name)
        finally:
            ray.shutdown()


def _take_back_sigterm() -> None:
    """What this process did on SIGTERM it does again: Ray's library has put a handler there that prints a trace and
    dies. To be called in the main thread.
    """
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    signal.siginterrupt(signal.SIGTERM, False)  # as asyncio has it


def _cause(message: str) -> str:
    """What a replica raised: the last line of the traceback that Serve tells."""
    last = message.rstrip().rpartition("\n")[2]
    return re.sub(r"^gemline\.errors\.\w+: ", "", last)
