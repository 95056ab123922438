"""Workers as Ray Serve deployments: Ray places, restarts, scales and upgrades them; no request travels through Ray."""

import asyncio
import logging
import os
from typing import Any

from ray import serve

from gemline import garbage
from gemline.cluster.records import Role
from gemline.host import watch_health
from gemline.serve.autoscaling import Scaling
from gemline.serve.ray_policy import autoscaling_config
from gemline.serve.ray_ranks import RankActors
from gemline.serve.settings import REDIS_URL_VARIABLE, WorkerSettings
from gemline.serve.workers import build_host

_LAST_WORDS_S = 2.0  # for telling gateways that a broken worker is gone

_log = logging.getLogger(__name__)


class HostedWorker:
    """A replica: one WorkerHost on the replica's own event loop. Its gRPC server, not Serve, gets the requests."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        # Where Ray serves a cluster, the URL and its password stay out of what Ray itself keeps and shows.
        elsewhere = {"redis_url": os.environ.get(REDIS_URL_VARIABLE, "")}
        own = WorkerSettings.from_dict(elsewhere | settings)
        placement = own.tensor_parallel_placement
        self._host = build_host(own, RankActors.of_this_replica(placement) if own.has_placed_ranks else None)
        await self._host.start()
        garbage.started()
        self._watch = asyncio.create_task(self._end_when_broken())

    async def _end_when_broken(self) -> None:
        """Serve would wait for three failures of `check_health`, and then for a drain that cannot be."""
        try:
            await watch_health(self._host)
        except Exception as error:
            _log.error("this replica ends, and Serve starts another: %s", error)
            try:
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._host.stop()
            finally:  # however that went: Redis may be away, too
                os._exit(1)

    async def check_health(self) -> None:
        """Serve calls this; three failures in a row replace the replica."""
        self._host.check_health()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve calls this where the deployment scales by itself."""
        return (await self._host.signals()).to_dict()

    async def __del__(self) -> None:
        # Serve awaits it once when the replica is to go: its only drain hook.
        self._watch.cancel()
        await self._host.drain()
        await self._host.stop()


def application(args: dict[str, Any]) -> serve.Application:
    """What a Serve config names as `import_path`; its `args` are WorkerSettings by name.

    How many there are and what each takes is for the config's `deployments` to say. Without a `redis_url` a replica
    reads GEMLINE_REDIS_URL where it runs. Raises ConfigurationError that names what is unknown, missing or wrong.
    """
    given = {"redis_url": ""} | args
    settings = WorkerSettings.from_dict(given)
    kept = {name: value for name, value in settings.to_dict().items() if name in args}
    return _deployment(settings, kept, {"num_replicas": 1}, num_cpus=0, num_gpus=settings.num_gpus)


def deployment(
    settings: WorkerSettings, num_replicas: int, num_cpus: float, num_gpus: float, scaling: Scaling | None = None
) -> serve.Application:
    """The Serve application of one role. CPUs and GPUs are what Ray's placement counts for a replica.

    Without any GPU Ray hides them all from the replica. With `scaling` it begins with `num_replicas` and scales.
    """
    size: dict[str, Any] = {"num_replicas": num_replicas}
    if scaling is not None:
        size = {"autoscaling_config": autoscaling_config(scaling, num_replicas)}
    return _deployment(settings, settings.to_dict(), size, num_cpus, num_gpus)


def _deployment(
    settings: WorkerSettings, told: dict[str, Any], size: dict[str, Any], num_cpus: float, num_gpus: float
) -> serve.Application:
    """`told` is what of the settings travels to the replicas, `size` how many there are, in Serve's words.

    CPUs and GPUs are a process's: of a divided engine, whose other ranks are actors, each has a bundle with as much.
    """
    if settings.has_placed_ranks:
        bundle = {name: number for name, number in (("CPU", num_cpus), ("GPU", num_gpus)) if number}
        size = size | {
            "placement_group_bundles": [bundle] * settings.tensor_parallel,
            "placement_group_strategy": settings.tensor_parallel_placement,
        }
    hosted = serve.deployment(
        name=settings.role,
        **size,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
        health_check_period_s=2,
        health_check_timeout_s=10,
        # Serve sees none of our requests: it may stop waiting at once and give the time to our own drain.
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=settings.drain_timeout_s + 10,
    )
    return hosted(HostedWorker).bind(told)


def application_name(role: Role) -> str:
    """Name of the Serve application that holds the workers of a role."""
    return f"gemline-{role.value}"
