"""What KubeRay 1.7's operator refuses although its CRD accepts it. Each rule gives what is wrong, or nothing."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

Service = dict[str, Any]
Rule = Callable[[Service], Iterator[str]]

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_NOT_BESIDE_FAULT_TOLERANCE = ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS")


def _cluster(service: Service) -> dict[str, Any]:
    cluster: dict[str, Any] = service["spec"]["rayClusterConfig"]
    return cluster


def _groups(service: Service) -> list[dict[str, Any]]:
    return [_cluster(service)["headGroupSpec"], *_cluster(service).get("workerGroupSpecs", [])]


def _autoscaler_version(service: Service) -> str | None:
    cluster = _cluster(service)
    if not cluster.get("enableInTreeAutoscaling"):
        return None
    version: str = cluster.get("autoscalerOptions", {}).get("version", "v1")
    return version


def head_has_a_serve_port(service: Service) -> Iterator[str]:
    """1: no Service is made otherwise."""
    (head, *_) = _groups(service)[0]["template"]["spec"]["containers"]
    names = [port.get("name", "") for port in head.get("ports", [])]
    if not any(name == "serve" or name.startswith("serve-") for name in names):
        yield f"the head's ports are {names}, none of them serve"


def name_is_short(service: Service) -> Iterator[str]:
    """2."""
    name = service["metadata"]["name"]
    if len(name) > 47 or not _DNS_1035.fullmatch(name):
        yield f"name {name} is no DNS-1035 label of 47 characters at most"


def upgrade_strategy_is_known(service: Service) -> Iterator[str]:
    """3."""
    kind = service["spec"].get("upgradeStrategy", {}).get("type", "NewCluster")
    if kind not in ("NewCluster", "NewClusterWithIncrementalUpgrade", "None"):
        yield f"upgradeStrategy.type is {kind}"


def token_needs_a_new_ray(service: Service) -> Iterator[str]:
    """4."""
    cluster = _cluster(service)
    if cluster.get("authOptions", {}).get("mode") == "token":
        version = tuple(int(part) for part in cluster.get("rayVersion", "0").split("."))
        if version < (2, 52):
            yield f"authOptions.mode is token, rayVersion {cluster.get('rayVersion')}"


def restart_policy_with_autoscaler_v2(service: Service) -> Iterator[str]:
    """5."""
    if _autoscaler_version(service) == "v2":
        for group in _groups(service):
            if (policy := group["template"]["spec"].get("restartPolicy", "Never")) != "Never":
                yield f"restartPolicy is {policy} with autoscaler v2"


def redis_settings_stand_once(service: Service) -> Iterator[str]:
    """6."""
    if "gcsFaultToleranceOptions" not in _cluster(service):
        return
    head = _groups(service)[0]
    if "redis-password" in head.get("rayStartParams", {}):
        yield "redis-password is in the head's rayStartParams"
    for group in _groups(service):
        for container in group["template"]["spec"]["containers"]:
            for variable in container.get("env", []):
                if variable["name"] in _NOT_BESIDE_FAULT_TOLERANCE:
                    yield f"{variable['name']} is in the environment of {container['name']}"


def least_is_not_above_most(service: Service) -> Iterator[str]:
    """7."""
    for group in _cluster(service).get("workerGroupSpecs", []):
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if least > most:
            yield f"{group['groupName']}: minReplicas {least}, maxReplicas {most}"


def a_resource_stands_once(service: Service) -> Iterator[str]:
    """8."""
    in_params = {"num-cpus": "CPU", "num-gpus": "GPU", "memory": "memory"}
    for group in _groups(service):
        given = group.get("rayStartParams", {})
        named = {resource for param, resource in in_params.items() if param in given}
        custom = given.get("resources", "").strip("'").strip('"').replace('\\"', '"')
        named |= set(json.loads(custom)) if custom else set()
        for twice in sorted(named & set(group.get("resources", {}))):
            yield f"{group.get('groupName', 'head')}: {twice} in rayStartParams and in resources"


def the_head_service_has_no_name(service: Service) -> Iterator[str]:
    """9."""
    if _groups(service)[0].get("headService", {}).get("metadata", {}).get("name"):
        yield "headService.metadata.name is set"


def incremental_upgrades_are_whole(service: Service) -> Iterator[str]:
    """10."""
    strategy = service["spec"].get("upgradeStrategy", {})
    if strategy.get("type") != "NewClusterWithIncrementalUpgrade":
        return
    if not _cluster(service).get("enableInTreeAutoscaling"):
        yield "an incremental upgrade without autoscaling"
    options = strategy.get("clusterUpgradeOptions", {})
    step, surge = options.get("stepSizePercent", 0), options.get("maxSurgePercent", 100)
    if not step <= surge <= 100:
        yield f"stepSizePercent {step}, maxSurgePercent {surge}"


def idle_timeouts_need_autoscaler_v2(service: Service) -> Iterator[str]:
    """11."""
    for group in _cluster(service).get("workerGroupSpecs", []):
        for key in ("idleTimeoutSeconds", "priority"):
            if key in group and _autoscaler_version(service) != "v2":
                yield f"{group['groupName']}: {key} without autoscaler v2"


def gated_fields_are_unset(service: Service) -> Iterator[str]:
    """12: behind feature gates that are off."""
    for key in ("networkPolicy", "tlsOptions"):
        if key in _cluster(service):
            yield f"{key} is set"


RULES: tuple[Rule, ...] = (
    head_has_a_serve_port,
    name_is_short,
    upgrade_strategy_is_known,
    token_needs_a_new_ray,
    restart_policy_with_autoscaler_v2,
    redis_settings_stand_once,
    least_is_not_above_most,
    a_resource_stands_once,
    the_head_service_has_no_name,
    incremental_upgrades_are_whole,
    idle_timeouts_need_autoscaler_v2,
    gated_fields_are_unset,
)
