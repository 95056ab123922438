"""A stand-in for a Kubernetes API server: objects by path, merge patches, label selectors, and who asked for what."""

import asyncio
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Object = dict[str, Any]
_VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete", "PUT": "update"}


@dataclass
class FakeKube:
    """Objects by (resource, namespace, name); `forbidden` holds pairs of resource and verb."""

    objects: dict[tuple[str, str, str], Object] = field(default_factory=dict)
    verbs: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    forbidden: set[tuple[str, str]] = field(default_factory=set)
    url: str = ""

    def put(self, resource: str, body: Object, namespace: str = "ns") -> Object:
        body.setdefault("metadata", {})["namespace"] = namespace
        self.objects[resource, namespace, body["metadata"]["name"]] = body
        return body

    def get(self, resource: str, name: str, namespace: str = "ns") -> Object:
        return self.objects[resource, namespace, name]

    async def handle(self, request: web.Request) -> web.Response:
        parts = request.path.strip("/").split("/")
        group = parts[1] if parts[0] == "apis" else ""
        namespace, plural, *name = parts[parts.index("namespaces") + 1 :]
        resource = f"{plural}.{group}" if group else plural
        verb = _VERBS.get(request.method) or ("get" if name else "list")
        self.verbs[resource].add(verb)
        if (resource, verb) in self.forbidden:
            return _status(403, "Forbidden")
        if verb == "list":
            return self._listed(resource, namespace, request.query.get("labelSelector", ""))
        body = json.loads(await request.text() or "{}")
        if verb == "create":
            if (resource, namespace, body["metadata"]["name"]) in self.objects:
                return _status(409, "Conflict")
            return web.json_response(self.put(resource, body, namespace), status=201)
        key = resource, namespace, name[0]
        if key not in self.objects:
            return _status(404, "NotFound")
        if verb == "delete":
            return web.json_response(self.objects.pop(key))
        if verb == "patch":
            if request.content_type != "application/merge-patch+json":
                return _status(415, f"unsupported {request.content_type}")
            self.objects[key] = merged(self.objects[key], body)
            self.objects[key]["metadata"]["generation"] = self.objects[key]["metadata"].get("generation", 1) + 1
        return web.json_response(self.objects[key])

    def _listed(self, resource: str, namespace: str, selector: str) -> web.Response:
        wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
        found = [
            body
            for (kind, where, _), body in self.objects.items()
            if (kind, where) == (resource, namespace) and wanted.items() <= body["metadata"].get("labels", {}).items()
        ]
        return web.json_response({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": found})


def merged(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    kept = old if isinstance(old, dict) else {}
    names = [*kept, *(name for name in patch if name not in kept)]
    values = {name: merged(kept.get(name), patch[name]) if name in patch else kept[name] for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _status(code: int, reason: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "reason": reason, "message": reason}, status=code)


@contextmanager
def fake_kube() -> Iterator[FakeKube]:
    """It serves on a thread of its own, on loopback."""
    fake, loop = FakeKube(), asyncio.new_event_loop()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.handle)
    runner = web.AppRunner(app)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
