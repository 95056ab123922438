"""Workers as Ray Serve deployments: Ray places, restarts, scales and upgrades them; no request travels through Ray."""

from typing import Any

from ray import serve

from gemline.cluster.records import Role
from gemline.serve.settings import WorkerSettings
from gemline.serve.workers import build_host


class HostedWorker:
    """A replica: one WorkerHost on the replica's own event loop. Its gRPC server, not Serve, gets the requests."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._host = build_host(WorkerSettings.from_dict(settings))
        await self._host.start()

    async def check_health(self) -> None:
        """Serve calls this; three failures in a row replace the replica."""
        self._host.check_health()

    async def __del__(self) -> None:
        # Serve awaits it once when the replica is to go: its only drain hook.
        await self._host.drain()
        await self._host.stop()


def deployment(settings: WorkerSettings, num_replicas: int, num_cpus: float, num_gpus: float) -> serve.Application:
    """The Serve application of one role. CPUs and GPUs are what Ray's placement counts for a replica.

    Without any GPU Ray hides them all from the replica.
    """
    hosted = serve.deployment(
        name=settings.role,
        num_replicas=num_replicas,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
        health_check_period_s=2,
        health_check_timeout_s=10,
        # Serve sees none of our requests: it may stop waiting at once and give the time to our own drain.
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=settings.drain_timeout_s + 10,
    )
    return hosted(HostedWorker).bind(settings.to_dict())


def application_name(role: Role) -> str:
    """Name of the Serve application that holds the workers of a role."""
    return f"gemline-{role.value}"
