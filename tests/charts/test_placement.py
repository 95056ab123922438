"""Which pods hold which replicas, and which ranks of a divided one: by what Serve asks of Ray, and what nodes have."""

import importlib
import json
from typing import Any, cast

import pytest
import yaml
from ray.serve._private.application_state import override_deployment_info
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema
from support.chart import PROFILES, changed, manifests, ray_service, selects

from gemline.cluster.records import Role
from gemline.serve.ray_app import application, application_name
from gemline.serve.settings import WorkerSettings


@pytest.fixture(params=PROFILES)
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ray_service(manifests(PROFILES[request.param]))


def applications(service: dict[str, Any]) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], yaml.safe_load(service["spec"]["serveConfigV2"])["applications"])


def worker_groups(service: dict[str, Any]) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], service["spec"]["rayClusterConfig"]["workerGroupSpecs"])


def test_the_serve_config_is_one_that_serve_takes_and_names_what_the_code_has(service: dict[str, Any]) -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    assert config.applications
    for app in config.applications:
        module, _, name = app.import_path.partition(":")
        built = getattr(importlib.import_module(module), name)(app.args)
        (deployment,) = app.deployments
        role = Role(app.args["role"])
        assert built._bound_deployment.name == deployment.name == role.value
        assert app.name.startswith(f"{application_name(role)}-")
        options = deployment.ray_actor_options.model_dump(exclude_unset=True)
        assert overridden(app).ray_actor_options == options


def overridden(app: ServeApplicationSchema) -> Any:
    """What Serve starts a replica by: the application's words, and above them the config's. Raises what Ray raises."""
    built = application(app.args)._bound_deployment
    info = DeploymentInfo(built._deployment_config, built._replica_config, 0, "")
    return override_deployment_info({built.name: info}, app)[built.name].replica_config


def test_each_application_has_pods_of_its_own_in_which_a_replica_takes_all_there_is(service: dict[str, Any]) -> None:
    assert_pods_hold_replicas(service)


def assert_pods_hold_replicas(service: dict[str, Any]) -> None:
    """By what a replica asks of Ray and what its pods have: each is taken whole, by ranks of one replica."""
    groups = {group["groupName"]: group for group in worker_groups(service)}
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert len(groups) == len(config["applications"])
    for app in config["applications"]:
        (deployment,) = app["deployments"]
        options = deployment["ray_actor_options"]
        ((resource, amount),) = options["resources"].items()
        assert amount == 1
        (group,) = [it for it in groups.values() if f'"{resource}\\"' in it["rayStartParams"]["resources"]]
        settings = WorkerSettings.from_dict({"redis_url": ""} | app["args"])
        own = {resource: 1, "GPU": options["num_gpus"]} if options["num_gpus"] else {resource: 1}
        bundles = deployment.get("placement_group_bundles", [own])
        assert bundles == [own] * (settings.tensor_parallel if settings.has_engine else 1)
        assert deployment.get("placement_group_strategy") == (
            settings.tensor_parallel_placement if settings.has_placed_ranks else None
        )
        is_spread = settings.tensor_parallel_placement == "PACK"
        pods = [[bundle] for bundle in bundles] if is_spread else [bundles]
        params = group["rayStartParams"]
        for pod in pods:
            assert json.loads(json.loads(params["resources"])) == {resource: len(pod)}
            assert int(params["num-gpus"]) == sum(bundle.get("GPU", 0) for bundle in pod)
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert int(limits.get("nvidia.com/gpu", 0)) == int(params["num-gpus"])
        range_ = deployment.get("autoscaling_config")
        least, most = (range_["min_replicas"], range_["max_replicas"]) if range_ else [deployment["num_replicas"]] * 2
        sizes = [number * len(pods) for number in (least, least, most)]
        assert [group[name] for name in ("replicas", "minReplicas", "maxReplicas")] == sizes


def divided(**changes: Any) -> dict[str, Any]:
    return ray_service(manifests(changed("h100-27b-tp2", models__0__tensorParallel=4, **changes)))


def decode_of(service: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its application and its worker group."""
    (app,) = [it for it in applications(service) if it["args"]["role"] == "decode"]
    (group,) = [it for it in worker_groups(service) if it["groupName"].endswith("decode")]
    return app, group


def test_a_divided_model_has_all_its_gpus_in_one_pod_and_a_colocated_one_prefills_where_it_decodes() -> None:
    service = divided()
    assert {app["args"]["role"] for app in applications(service)} == {"tokenization", "decode"}
    app, group = decode_of(service)
    assert app["args"]["prefill"] == "never"
    assert app["args"]["tensor_parallel_placement"] == "STRICT_PACK"
    assert app["deployments"][0]["ray_actor_options"]["num_gpus"] == 1
    assert group["replicas"] == 2
    assert group["numOfHosts"] == 1
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"


PACKED = {"models__0__tensorParallelPlacement": "PACK", "internalTls__mode": "none"}


def test_a_model_whose_ranks_may_be_anywhere_has_pods_of_one_gpu_near_each_other() -> None:
    service = divided(**PACKED, models__0__decode__maxReplicas=3)
    assert_pods_hold_replicas(service)
    _, group = decode_of(service)
    assert (group["minReplicas"], group["maxReplicas"], group["numOfHosts"]) == (8, 12, 1)
    pod = group["template"]
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    (near,) = pod["spec"]["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert selects(near["podAffinityTerm"]["labelSelector"], pod["metadata"]["labels"])
    assert "topologySpreadConstraints" not in pod["spec"]
    assert "affinity" not in decode_of(divided())[1]["template"]["spec"]


def test_a_divided_replica_on_cpus_asks_for_no_gpu_although_its_application_does() -> None:
    service = ray_service(manifests(changed("cpu", models__0__tensorParallel=2)))
    assert_pods_hold_replicas(service)
    app = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"])).applications[-1]
    assert application(app.args)._bound_deployment._replica_config.placement_group_bundles == [{"GPU": 1.0}] * 2
    asked = overridden(app)
    assert asked.placement_group_bundles == [{"gemline-demo-decode": 1}] * 2
    assert asked.placement_group_strategy == "STRICT_PACK"
    assert asked.ray_actor_options["num_gpus"] == 0


def test_ray_refuses_a_replica_that_is_not_in_its_own_first_bundle() -> None:
    """What the test above guards against."""
    app, _ = decode_of(divided())
    app["deployments"][0]["placement_group_bundles"][0] = {"GPU": 1}
    with pytest.raises(ValueError, match="`gemline-gemma-2-27b-decode` requirement for the actor is 1"):
        overridden(ServeApplicationSchema.model_validate(app))
