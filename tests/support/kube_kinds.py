"""The kinds that the stand-in for an API server knows: what it tells of them, refuses in them, and never changes."""

import functools
import json
from typing import Any, NamedTuple

import kubernetes_validate

Object = dict[str, Any]

_VERSION = "1.34.0"
_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


class Kind(NamedTuple):
    """`fixed` are the fields of its spec, or the object's own, that no request may change."""

    group: str
    version: str
    name: str
    plural: str
    fixed: tuple[str, ...] = ()
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def is_built_in(self) -> bool:
        return "." not in self.group or self.group.endswith(".k8s.io")


# A StatefulSet's spec but for what Kubernetes lets change.
_OF_A_SET = ("selector", "serviceName", "volumeClaimTemplates", "podManagementPolicy")
KINDS = (
    Kind("", "v1", "Namespace", "namespaces", namespaced=False),
    Kind("", "v1", "ConfigMap", "configmaps"),
    Kind("", "v1", "Pod", "pods"),
    Kind("", "v1", "Secret", "secrets", ("type",)),
    Kind("", "v1", "Service", "services", ("clusterIP",)),
    Kind("", "v1", "ServiceAccount", "serviceaccounts"),
    Kind("apps", "v1", "Deployment", "deployments", ("selector",)),
    Kind("apps", "v1", "StatefulSet", "statefulsets", _OF_A_SET),
    Kind("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
    Kind("batch", "v1", "CronJob", "cronjobs"),
    Kind("batch", "v1", "Job", "jobs", ("template", "selector")),
    Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
    Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Kind("rbac.authorization.k8s.io", "v1", "Role", "roles"),
    Kind("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", ("roleRef",)),
    Kind("cert-manager.io", "v1", "Certificate", "certificates"),
    Kind("cert-manager.io", "v1", "Issuer", "issuers"),
    Kind("gateway.networking.k8s.io", "v1", "BackendTLSPolicy", "backendtlspolicies"),
    Kind("gateway.networking.k8s.io", "v1", "GRPCRoute", "grpcroutes"),
    Kind("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes"),
    Kind("keda.sh", "v1alpha1", "ScaledObject", "scaledobjects"),
    Kind("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors"),
    Kind("monitoring.coreos.com", "v1", "ServiceMonitor", "servicemonitors"),
    Kind("ray.io", "v1", "RayCluster", "rayclusters"),
    Kind("ray.io", "v1", "RayService", "rayservices"),
)
BY_RESOURCE = {kind.resource: kind for kind in KINDS}
BY_NAME = {(kind.api_version, kind.name): kind for kind in KINDS}
_INSTALLED = tuple(kind for kind in KINDS if not kind.is_built_in or kind.group == "gateway.networking.k8s.io")


def custom_kinds() -> tuple[Kind, ...]:
    """Those that a cluster knows by a CustomResourceDefinition alone."""
    return _INSTALLED


def document(path: str) -> Object | None:
    """What a path tells of the API: versions, groups, resources, OpenAPI; None where it is none of these."""
    groups = sorted({(kind.group, kind.version) for kind in KINDS if kind.group})
    if path == "version":
        return {"major": "1", "minor": "34", "gitVersion": f"v{_VERSION}"}
    if path == "api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "apis":
        versions = [{"groupVersion": f"{group}/{version}", "version": version} for group, version in groups]
        listed = [
            {"name": group, "versions": [one], "preferredVersion": one}
            for (group, _), one in zip(groups, versions, strict=True)
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    if path == "openapi/v3":
        places = ["api/v1", *(f"apis/{group}/{version}" for group, version in groups)]
        return {"paths": {place: {"serverRelativeURL": f"/openapi/v3/{place}"} for place in places}}
    if path.startswith("openapi/v3/"):
        return _openapi(_of(path.removeprefix("openapi/v3/")))
    return _resources(found) if (found := _of(path)) else None


def _of(path: str) -> list[Kind]:
    """Kinds of the group and version that a path ends in."""
    _, _, api_version = path.partition("/")
    return [kind for kind in KINDS if kind.api_version == api_version]


def _resources(kinds: list[Kind]) -> Object:
    listed = [
        {"name": it.plural, "singularName": "", "kind": it.name, "namespaced": it.namespaced, "verbs": _VERBS}
        for it in kinds
    ]
    return {"kind": "APIResourceList", "groupVersion": kinds[0].api_version, "resources": listed}


def _openapi(kinds: list[Kind]) -> Object:
    """That it validates by itself, which is all that Helm looks for."""
    validates = [{"name": "fieldValidation", "in": "query"}]
    paths = {
        f"/{it.plural}": {
            "patch": {
                "parameters": validates,
                "x-kubernetes-group-version-kind": {"group": it.group, "version": it.version, "kind": it.name},
            }
        }
        for it in kinds
    }
    return {"openapi": "3.0.0", "paths": paths}


@functools.lru_cache(maxsize=4096)  # most of what is applied was applied before
def _unknown(body: str) -> str:
    """What Kubernetes' own schema says against an object; empty: nothing."""
    try:
        kubernetes_validate.validate(json.loads(body), _VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


def refusal(kind: Kind, new: Object, old: Object | None) -> str | None:
    """Why an API server would not take `new` in place of `old`."""
    if kind not in _INSTALLED and (words := _unknown(json.dumps(new))):
        return f"{kind.name} {new['metadata']['name']}: {words}"
    if old is None:
        return None
    for field in kind.fixed:
        for before, after in ((old, new), (old.get("spec", {}), new.get("spec", {}))):
            if field in before and before[field] != after.get(field):
                return f"{kind.name} {new['metadata']['name']}: field is immutable: {field}"
    return None
