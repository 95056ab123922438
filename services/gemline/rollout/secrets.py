"""Secrets of one namespace, as `gemline certificates` reads and writes them."""

import base64
import functools
from typing import Any, NamedTuple

from kubernetes import client

from gemline.errors import NotFound
from gemline.rollout.kube import TIMEOUT_S, Kube

# All that a Role for it must allow; a test holds it to what is really asked for. `create` cannot be held to names.
RBAC_VERBS = frozenset({"get", "create", "patch"})


class Secret(NamedTuple):
    """`version` is the object's own: a change that somebody else made since is not overwritten."""

    data: dict[str, bytes]
    version: str


class Secrets:
    """Methods raise as `Kube`'s do."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._core: Any = client.CoreV1Api(kube.api)

    async def read(self, name: str) -> Secret | None:
        """None where there is none."""
        read = functools.partial(
            self._core.read_namespaced_secret, name, self._kube.namespace, _request_timeout=TIMEOUT_S
        )
        try:
            found = await self._kube.call("get", "secrets", read, name)
        except NotFound:
            return None
        data = {key: base64.b64decode(value) for key, value in (found.data or {}).items()}
        return Secret(data, found.metadata.resource_version)

    async def write(self, name: str, data: dict[str, bytes], labels: dict[str, str], before: Secret | None) -> None:
        """In place of what was read before. Raises Conflict where that is no longer what is there."""
        told = {key: base64.b64encode(value).decode() for key, value in data.items()}
        where = {"namespace": self._kube.namespace, "_request_timeout": TIMEOUT_S}
        if before is None:
            body = {"metadata": {"name": name, "labels": labels}, "type": "kubernetes.io/tls", "data": told}
            make = functools.partial(self._core.create_namespaced_secret, body=body, **where)
            await self._kube.call("create", "secrets", make, name)
            return
        body = {"metadata": {"resourceVersion": before.version}, "data": told}
        merge = "application/merge-patch+json"
        patch = functools.partial(self._core.patch_namespaced_secret, name, body=body, _content_type=merge, **where)
        await self._kube.call("patch", "secrets", patch, name)
