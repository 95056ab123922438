"""The RayService as KubeRay 1.7 takes it: its CRD made strict, and the operator's own rules, each of which can fail."""

import copy
import json
from collections.abc import Callable
from typing import Any, cast

import jsonschema
import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema
from support.chart import PROFILES, ROOT, changed, manifests, ray_service
from support.kuberay_rules import RULES, Rule

from gemline.serve.autoscaling import Scaling
from gemline.serve.ray_policy import RolePolicy, autoscaling_config
from gemline.serve.settings import WorkerSettings

CRDS = ROOT.parent / "shared" / "kuberay" / "rayservices.crd.json"
Mutation = Callable[[dict[str, Any]], None]


@pytest.fixture(params=PROFILES)
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ray_service(manifests(PROFILES[request.param]))


def strict(schema: Any) -> Any:
    """A CRD's schema as a JSON schema that refuses every field it does not know."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {
        key: {name: strict(part) for name, part in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
        if not key.startswith("x-kubernetes-") and key not in ("default", "format")
    }
    if "properties" in kept and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept.setdefault("additionalProperties", False)
    return kept


@pytest.fixture(scope="module")
def crd() -> Any:
    if not CRDS.exists():
        pytest.skip("KubeRay's CRDs are not beside this checkout")
    (version,) = [it for it in json.loads(CRDS.read_text())["spec"]["versions"] if it["name"] == "v1"]
    return strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])


def test_the_crd_takes_every_profile_and_knows_each_field(crd: Any, service: dict[str, Any]) -> None:
    jsonschema.validate(service["spec"], crd)


def test_the_strict_crd_refuses_a_field_it_does_not_know(crd: Any) -> None:
    service = ray_service(manifests(PROFILES["cpu"]))
    service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["enviroment"] = []
    with pytest.raises(jsonschema.ValidationError, match="enviroment"):
        jsonschema.validate(service["spec"], crd)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_operator_refuses_no_profile(rule: Rule, service: dict[str, Any]) -> None:
    assert list(rule(service)) == []


def _cluster(service: dict[str, Any]) -> dict[str, Any]:
    return cast(dict[str, Any], service["spec"]["rayClusterConfig"])


def _drop_serve_port(service: dict[str, Any]) -> None:
    container = _cluster(service)["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["ports"] = [port for port in container["ports"] if port["name"] != "serve"]


def _autoscale(service: dict[str, Any], version: str = "v2") -> None:
    _cluster(service).update(enableInTreeAutoscaling=True, autoscalerOptions={"version": version})


def _restart_always(service: dict[str, Any]) -> None:
    _autoscale(service)
    _cluster(service)["workerGroupSpecs"][0]["template"]["spec"]["restartPolicy"] = "Always"


def _name_redis_twice(service: dict[str, Any]) -> None:
    container = _cluster(service)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container["env"].append({"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"})


def _go_in_steps(service: dict[str, Any]) -> None:
    _autoscale(service)
    options = {"gatewayClassName": "x", "intervalSeconds": 1, "stepSizePercent": 50, "maxSurgePercent": 40}
    service["spec"]["upgradeStrategy"] = {
        "type": "NewClusterWithIncrementalUpgrade",
        "clusterUpgradeOptions": options,
    }


MUTATIONS: dict[str, Mutation] = {
    "head_has_a_serve_port": _drop_serve_port,
    "name_is_short": lambda service: service["metadata"].update(name="g" * 48),
    "upgrade_strategy_is_known": lambda service: service["spec"].update(upgradeStrategy={"type": "Recreate"}),
    "token_needs_a_new_ray": lambda service: _cluster(service).update(rayVersion="2.51.9"),
    "restart_policy_with_autoscaler_v2": _restart_always,
    "redis_settings_stand_once": _name_redis_twice,
    "least_is_not_above_most": lambda service: _cluster(service)["workerGroupSpecs"][0].update(minReplicas=9),
    "a_resource_stands_once": lambda service: _cluster(service)["workerGroupSpecs"][0].update(
        resources={"gemline-demo-tokenization": "1"}
    ),
    "the_head_service_has_no_name": lambda service: _cluster(service)["headGroupSpec"].update(
        headService={"metadata": {"name": "head"}}
    ),
    "incremental_upgrades_are_whole": _go_in_steps,
    "idle_timeouts_need_autoscaler_v2": lambda service: _cluster(service)["workerGroupSpecs"][0].update(priority=1),
    "gated_fields_are_unset": lambda service: _cluster(service).update(tlsOptions={}),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_each_rule_can_be_broken(rule: Rule) -> None:
    service = copy.deepcopy(ray_service(manifests(PROFILES["cpu"])))
    MUTATIONS[rule.__name__](service)
    assert len(list(rule(service))) == 1


def test_a_role_with_a_range_is_scaled_by_our_policy_and_by_rays_autoscaler() -> None:
    service = ray_service(
        manifests(changed("cpu", models__0__decode__maxReplicas=3, ray__autoscaling__itlSloSeconds=1))
    )
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (decode,) = [app.deployments[0] for app in config.applications if app.args["role"] == "decode"]
    scaling = decode.autoscaling_config
    assert isinstance(scaling, dict)
    given = scaling["policy"]["policy_kwargs"]
    assert Scaling(**given) == Scaling("decode", 1, 3, itl_slo_s=1, down_after_s=300)
    assert scaling["policy"]["policy_function"] == f"{RolePolicy.__module__}:{RolePolicy.__name__}"
    ours = autoscaling_config(Scaling(**given), 1)
    for name in ("upscale_delay_s", "downscale_delay_s", "metrics_interval_s", "look_back_period_s"):
        assert scaling[name] == getattr(ours, name)
    assert _cluster(service)["enableInTreeAutoscaling"]
    assert _cluster(service)["autoscalerOptions"]["version"] == "v2"
    head = _cluster(service)["headGroupSpec"]["template"]["spec"]
    assert head["automountServiceAccountToken"]
    assert head["serviceAccountName"] == "gemline-head"


def test_engines_are_told_how_to_keep_keys_and_values() -> None:
    service = ray_service(manifests(changed("cpu", models__0__kvCacheDtype="fp8")))
    told = [WorkerSettings.from_dict({"redis_url": ""} | app["args"]) for app in _applications(service)]
    assert {it.role: it.kv_cache_dtype for it in told} == {"tokenization": "auto", "prefill": "fp8", "decode": "fp8"}


def _applications(service: dict[str, Any]) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], yaml.safe_load(service["spec"]["serveConfigV2"])["applications"])


def test_without_a_range_nobody_scales_and_no_pod_has_a_token() -> None:
    service = ray_service(manifests(PROFILES["cpu"]))
    assert not _cluster(service)["enableInTreeAutoscaling"]
    assert "autoscalerOptions" not in _cluster(service)
    for group in (_cluster(service)["headGroupSpec"], *_cluster(service)["workerGroupSpecs"]):
        assert not group["template"]["spec"]["automountServiceAccountToken"]


def test_a_replica_listens_at_the_ports_that_its_pod_names(service: dict[str, Any]) -> None:
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    for app, group in zip(config["applications"], _cluster(service)["workerGroupSpecs"], strict=True):
        ports = {port["name"]: port["containerPort"] for port in group["template"]["spec"]["containers"][0]["ports"]}
        assert ports == {"grpc": app["args"]["port"], "worker-metrics": app["args"]["metrics_port"]}
        assert all(port < 10002 for port in ports.values()), "Ray and the kernel choose from the ports above"


def test_the_redis_url_and_its_password_are_in_no_config_that_ray_shows(service: dict[str, Any]) -> None:
    assert "redis" not in service["spec"]["serveConfigV2"]


def test_the_head_computes_nothing(service: dict[str, Any]) -> None:
    head = _cluster(service)["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == head["rayStartParams"]["num-gpus"] == "0"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_the_ray_of_the_chart_is_the_ray_that_is_tested(service: dict[str, Any]) -> None:
    assert _cluster(service)["rayVersion"] == ray.__version__


def test_ray_keeps_its_state_in_redis_and_asks_for_a_token(service: dict[str, Any]) -> None:
    options = _cluster(service)["gcsFaultToleranceOptions"]
    assert options["redisAddress"].startswith(("redis://", "rediss://"))
    assert set(options["redisPassword"]) == {"valueFrom"}
    assert _cluster(service)["authOptions"] == {"mode": "token"}
