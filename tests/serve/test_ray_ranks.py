"""What Ray is told of an engine's ranks: a bundle for each, on one node or on as few as can be."""

from typing import Any

import pytest
from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup

from gemline.errors import ConfigurationError
from gemline.serve.ray_app import application, deployment
from gemline.serve.ray_ranks import RankActors
from gemline.serve.settings import Placement, WorkerSettings

TOLD: dict[str, Any] = {"role": "decode", "model_dir": "m", "served_model_name": "n", "redis_url": "redis://h"}


def config_of(app: Any) -> Any:
    return app._bound_deployment._replica_config


@pytest.mark.parametrize("placement", ["STRICT_PACK", "PACK"])
def test_each_rank_has_a_bundle_with_a_gpu_of_its_own(placement: Placement) -> None:
    told = TOLD | {"tensor_parallel": 4, "tensor_parallel_placement": placement}
    config = config_of(application(told))
    assert config.placement_group_bundles == [{"GPU": 1.0}] * 4
    assert config.placement_group_strategy == placement
    assert config.ray_actor_options["num_gpus"] == 1
    without_gpu = config_of(deployment(WorkerSettings.from_dict(told), 1, num_cpus=0.5, num_gpus=0))
    assert without_gpu.placement_group_bundles == [{"CPU": 0.5}] * 4


def test_without_a_word_of_placement_the_replica_has_all_the_gpus_itself() -> None:
    """Its other ranks are child processes."""
    config = config_of(application(TOLD | {"tensor_parallel": 4}))
    assert config.placement_group_bundles is None
    assert config.ray_actor_options["num_gpus"] == 4


@pytest.mark.parametrize("role", ["tokenization", "decode"])
def test_an_undivided_worker_needs_no_placement(role: str) -> None:
    told = TOLD | {"role": role, "tensor_parallel_placement": "PACK"}
    assert config_of(application(told)).placement_group_bundles is None


def test_a_group_with_another_number_of_bundles_is_refused_with_both_numbers() -> None:
    group = PlacementGroup(PlacementGroupID.from_random(), bundle_cache=[{"CPU": 1.0}] * 3)
    ranks = RankActors(group, "127.0.0.1")
    ranks.check(3)
    with pytest.raises(ConfigurationError, match=r"tensor_parallel 2 needs 2 bundles in .*, it has 3"):
        ranks.check(2)
