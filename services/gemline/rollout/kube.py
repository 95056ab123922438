"""What `gemline rollout` does to objects of Kubernetes: four kinds, a handful of verbs, errors that say what to do."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError

from gemline.errors import ConfigurationError, Conflict, Forbidden, NotFound, Unavailable

# All that a Role for it must allow, in the release's namespace; a test holds it to what is really asked for.
RBAC_VERBS: dict[str, frozenset[str]] = {
    "deployments.apps": frozenset({"list", "patch"}),
    "rayservices.ray.io": frozenset({"list", "patch"}),
    "rayclusters.ray.io": frozenset({"list", "delete"}),
    "configmaps": frozenset({"get", "create", "patch"}),
}

Object = dict[str, Any]
T = TypeVar("T")

_RAY = {"group": "ray.io", "version": "v1"}
_MERGE = "application/merge-patch+json"
_MANAGER = "gemline-rollout"
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")  # a pod's
_MOST_TRIES = 5
TIMEOUT_S = 20.0


class Kube:
    """One namespace. Methods raise Forbidden, NotFound, Conflict and Unavailable, which name verb and object."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        # Any: the client's annotations are another in each of its versions, and refuse dicts that it takes.
        self._apps: Any = client.AppsV1Api(api)
        self._core: Any = client.CoreV1Api(api)
        self._custom: Any = client.CustomObjectsApi(api)

    @classmethod
    def connect(cls, namespace: str | None, context: str | None = None) -> "Kube":
        """By the kubeconfig, or inside a pod by its service account. Raises ConfigurationError without either."""
        configuration, load = client.Configuration(), cast(Any, config)
        try:
            try:
                load.load_kube_config(context=context, client_configuration=configuration)
                known, current = load.list_kube_config_contexts()
                named = current if context is None else next(it for it in known if it["name"] == context)
                own = named["context"].get("namespace")
            except ConfigException:
                if context is not None:
                    raise
                load.load_incluster_config(client_configuration=configuration)
                own = _OWN_NAMESPACE.read_text().strip() if _OWN_NAMESPACE.exists() else None
        except ConfigException as error:
            raise ConfigurationError(f"no cluster is known: {error}; set KUBECONFIG, or run it in a pod") from error
        return cls(client.ApiClient(configuration), namespace or own or "default")

    async def deployments(self, selector: str) -> list[Object]:
        """Those with these labels."""
        listed = self._apps.list_namespaced_deployment
        plain = {**_selecting(selector), "_preload_content": False}  # as JSON, like the objects that are not built in
        found = await self.call("list", "deployments.apps", lambda: listed(self.namespace, **plain))
        return _items(json.loads(found.data))

    async def patch_deployment(self, name: str, body: Object) -> None:
        """A merge patch."""
        patch = self._apps.patch_namespaced_deployment

        def send(part: Object) -> Object:
            answer: Object = json.loads(patch(name, self.namespace, part, _preload_content=False, **_PATCH).data)
            return answer

        await self._patch("deployments.apps", name, body, send)

    async def ray(self, plural: str, selector: str) -> list[Object]:
        """`rayservices` or `rayclusters` with these labels. NotFound: KubeRay is not installed."""
        listed = self._custom.list_namespaced_custom_object
        where = {**_RAY, "namespace": self.namespace, "plural": plural}
        return _items(await self.call("list", f"{plural}.ray.io", lambda: listed(**where, **_selecting(selector))))

    async def patch_service(self, name: str, body: Object) -> None:
        """A merge patch of a RayService."""
        patch = self._custom.patch_namespaced_custom_object
        where = {**_RAY, "namespace": self.namespace, "plural": "rayservices", "name": name}

        def send(part: Object) -> Object:
            return cast(Object, patch(**where, body=part, **_PATCH))

        await self._patch("rayservices.ray.io", name, body, send)

    async def delete_cluster(self, name: str) -> None:
        """A RayCluster; one that has gone meanwhile is fine."""
        delete = self._custom.delete_namespaced_custom_object
        where = {**_RAY, "namespace": self.namespace, "plural": "rayclusters", "name": name}
        try:
            await self.call("delete", "rayclusters.ray.io", lambda: delete(**where, _request_timeout=TIMEOUT_S), name)
        except NotFound:
            return

    async def notes(self, name: str) -> dict[str, str]:
        """The data of a ConfigMap; empty when there is none."""
        read = self._core.read_namespaced_config_map
        try:
            found = await self.call(
                "get", "configmaps", lambda: read(name, self.namespace, _request_timeout=TIMEOUT_S), name
            )
        except NotFound:
            return {}
        return dict(found.data or {})

    async def note(self, name: str, labels: dict[str, str], data: dict[str, str]) -> None:
        """Adds to a ConfigMap, which is made where it is not there."""
        patch, create = self._core.patch_namespaced_config_map, self._core.create_namespaced_config_map
        try:
            await self.call("patch", "configmaps", lambda: patch(name, self.namespace, {"data": data}, **_PATCH), name)
        except NotFound:
            made = {"metadata": {"name": name, "labels": labels}, "data": data}
            await self.call(
                "create", "configmaps", lambda: create(self.namespace, made, _request_timeout=TIMEOUT_S), name
            )

    async def _patch(self, resource: str, name: str, body: Object, send: Callable[[Object], Object]) -> None:
        """Changes an object that Helm applies, and leaves no field of it ours: else Helm's next upgrade, which says
        something else of them, is refused as a conflict.
        """
        for _ in range(_MOST_TRIES):
            found = await self.call("patch", resource, partial(send, body), name)
            fields = found["metadata"].get("managedFields", [])
            kept = [entry for entry in fields if entry.get("manager") != _MANAGER]
            if kept == fields:
                return
            # An empty list would change nothing; one empty entry stands for none. The version: nobody's is undone.
            version = found["metadata"]["resourceVersion"]
            shed = {"metadata": {"managedFields": kept or [{}], "resourceVersion": version}}
            try:
                await self.call("patch", resource, partial(send, shed), name)
            except Conflict:
                continue
            return
        raise Conflict(
            f"cannot patch {resource} {name} in namespace {self.namespace}: somebody else changes it all the time"
        )

    async def call(self, verb: str, resource: str, call: Callable[[], T], name: str = "") -> T:
        """What the API answers to a blocking call of the client's."""
        what = f"{verb} {resource}{f' {name}' if name else ''} in namespace {self.namespace}"
        try:
            return await asyncio.to_thread(call)
        except ApiException as error:
            if error.status in (401, 403):
                raise Forbidden(f"may not {what}: a Role of the chart's allows it") from error
            if error.status == 404:
                raise NotFound(f"cannot {what}: there is none") from error
            if error.status == 409:
                raise Conflict(f"cannot {what}: somebody else changes it now; try again") from error
            raise Unavailable(f"cannot {what}: the API server says {error.status} {error.reason}") from error
        except (HTTPError, OSError) as error:
            raise Unavailable(f"cannot {what}: the API server does not answer ({type(error).__name__})") from error


_PATCH: Object = {"_content_type": _MERGE, "_request_timeout": TIMEOUT_S, "field_manager": _MANAGER}


def _selecting(selector: str) -> Object:
    return {"label_selector": selector, "_request_timeout": TIMEOUT_S}


def _items(found: Object) -> list[Object]:
    return list(found["items"])
