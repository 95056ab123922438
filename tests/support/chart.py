"""The chart as tests look at it: profiles, manifests, and what of a manifest is a pod."""

import copy
import functools
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "gemline"
GOLDEN = ROOT / "tests" / "golden" / "chart"

Manifest = dict[str, Any]

_spec = importlib.util.spec_from_file_location("golden_chart", ROOT / "tests" / "golden" / "chart.py")
assert _spec is not None
assert _spec.loader is not None
maker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(maker)

PROFILES: dict[str, dict[str, Any]] = maker.profiles()


def changed(profile: str, **paths: Any) -> dict[str, Any]:
    """The values of a profile with others at some places: `gateway__tls__existingSecret="x"`, `models__0__gpu="h100"`.

    Ellipsis takes the value away.
    """
    values = copy.deepcopy(PROFILES[profile])
    for path, value in paths.items():
        *parents, last = path.split("__")
        place: Any = values
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        if value is ...:
            del place[last]
        else:
            place[int(last) if isinstance(place, list) else last] = value
    return values


def manifests(values: dict[str, Any], release: str = "gemline", namespace: str = maker.NAMESPACE) -> list[Manifest]:
    """Every manifest that the chart gives for those values."""
    text = _text(json.dumps(values), release, namespace)
    return [manifest for manifest in yaml.load_all(text, yaml.CSafeLoader) if manifest]


@functools.cache
def _text(values_json: str, release: str, namespace: str) -> str:
    """Many tests look at the same profile."""
    return str(maker.render(json.loads(values_json), release, namespace))


def of_kind(all_of_them: list[Manifest], kind: str) -> list[Manifest]:
    """Those of one kind."""
    return [manifest for manifest in all_of_them if manifest["kind"] == kind]


def ray_service(all_of_them: list[Manifest]) -> Manifest:
    """The one there is."""
    (found,) = of_kind(all_of_them, "RayService")
    return found


def pods(all_of_them: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """(name, template) of every pod that comes of them, Ray's too. A template has metadata and spec."""
    for manifest in all_of_them:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        if manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield name, manifest["spec"]["template"]
        elif manifest["kind"] == "CronJob":
            yield name, manifest["spec"]["jobTemplate"]["spec"]["template"]
        elif manifest["kind"] == "Pod":
            yield name, manifest
        elif manifest["kind"] == "RayService":
            cluster = manifest["spec"]["rayClusterConfig"]
            yield f"{name} head", cluster["headGroupSpec"]["template"]
            for group in cluster["workerGroupSpecs"]:
                yield f"{name} {group['groupName']}", group["template"]


def containers(template: Manifest) -> list[Manifest]:
    """All of a pod, those that run first included."""
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector of Kubernetes matches those labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", f"a selector with operator {expression['operator']}"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True
