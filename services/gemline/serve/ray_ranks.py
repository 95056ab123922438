"""Ranks as Ray actors in their replica's placement group: rank i in bundle i, rank 0 is the replica itself.

An actor has one owner, the replica, and Ray ends it when that ends, however that is.
"""

import os
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from gemline.errors import ConfigurationError
from gemline.serve.openmp import limit_spinning
from gemline.serve.settings import Placement

if TYPE_CHECKING:  # it brings torch, before which `limit_spinning` has to speak
    from gemline.rank_group import RankTask


class RankActors:
    """A `Starter`, in the replica of rank 0."""

    def __init__(self, group: PlacementGroup, address: str | None) -> None:
        """`address`: of this node, for ranks on others; None: all are on this one."""
        self.address = address
        self._group = group

    @classmethod
    def of_this_replica(cls, placement: Placement | None) -> "RankActors":
        """Ranks that are kept on one node meet in a file there, and no port is open for them.

        Raises ConfigurationError outside a placement group.
        """
        group = ray.util.get_current_placement_group()
        if group is None:
            raise ConfigurationError("tensor_parallel_placement: this replica is in no placement group")
        address = None if placement == "STRICT_PACK" else ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return cls(group, address)

    def check(self, num_ranks: int) -> None:
        """Raises ConfigurationError, naming both numbers, unless there is a bundle for each rank."""
        if (num_bundles := self._group.bundle_count) != num_ranks:
            raise ConfigurationError(
                f"tensor_parallel {num_ranks} needs {num_ranks} bundles in the replica's placement group, it has"
                f" {num_bundles}",
                param="tensor_parallel",
            )

    def start(self, task: "RankTask") -> "StartedActor":
        """In its bundle, whose CPUs and GPUs it takes. A custom resource is the bundle's own business."""
        bundle = self._group.bundle_specs[task.rank]
        placed = ray.remote(RankActor).options(
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, task.rank),
        )
        return StartedActor(placed.remote(), task)


class RankActor:
    """In a process of its own."""

    def __init__(self) -> None:
        limit_spinning()

    def run(self, task: "RankTask") -> None:
        """Until rank 0 says that it is over. A group that broke takes this process along: nobody waits for its word."""
        from gemline.engine.ranks import RanksBroken
        from gemline.logs import setup_logging
        from gemline.rank_group import run_rank

        setup_logging(f"rank {task.rank}")
        try:
            run_rank(task)
        except RanksBroken:
            os._exit(1)


class StartedActor:
    """A `StartedRank`."""

    def __init__(self, actor: Any, task: "RankTask") -> None:
        self._actor = actor
        self._end: ray.ObjectRef[None] = actor.run.remote(task)

    def last_words(self) -> str | None:
        """What it raised, or how Ray tells its death; None while it runs."""
        ended, _ = ray.wait([self._end], timeout=0)
        if not ended:
            return None
        try:
            ray.get(self._end)
        except ray.exceptions.RayTaskError as error:
            return str(error.cause)
        except ray.exceptions.RayError as error:
            return str(error).strip().partition("\n")[0]
        return "it was told to"

    def wait(self) -> None:
        """Until it has ended."""
        ray.wait([self._end])

    def kill(self) -> None:
        """At once."""
        ray.kill(self._actor)
