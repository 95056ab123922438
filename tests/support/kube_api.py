"""A stand-in for a Kubernetes API server: objects, patches, server-side apply, watches, roles, and who asked for what.

Helm's own library and the Kubernetes client talk to it. Nothing runs in it: no controller, no scheduler.
"""

import asyncio
import contextlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiohttp import web
from support.kube_fields import ConflictingFields, applied, updated
from support.kube_kinds import BY_RESOURCE, document, refusal

Object = dict[str, Any]
_VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete", "PUT": "update"}
_MERGE, _APPLY = "application/merge-patch+json", "application/apply-patch+yaml"
_POLL_S = 0.02
OPERATOR = "operator"  # a token


class Key(NamedTuple):
    resource: str  # such as deployments.apps
    namespace: str  # empty: it has none
    name: str


class Change(NamedTuple):
    kind: str  # ADDED, MODIFIED or DELETED
    key: Key
    object: Object


@dataclass
class FakeKube:
    """`forbidden` holds pairs of resource and verb. Whoever has a token but the operator's is held to its roles."""

    objects: dict[Key, Object] = field(default_factory=dict)
    verbs: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    forbidden: set[tuple[str, str]] = field(default_factory=set)
    changes: list[Change] = field(default_factory=list)
    url: str = ""

    def put(self, resource: str, body: Object, namespace: str = "ns") -> Object:
        """Without a question."""
        body.setdefault("metadata", {})["namespace"] = namespace
        return self._store(Key(resource, namespace, body["metadata"]["name"]), body)

    def get(self, resource: str, name: str, namespace: str = "ns") -> Object:
        return self.objects[Key(resource, namespace, name)]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path.strip("/")
        if told := document(path):
            return web.json_response(told)
        if (key := _key(path)) is None:
            return _status(404, "NotFound", f"no such path: /{path}")
        verb = _VERBS.get(request.method) or ("get" if key.name else "list")
        self.verbs[key.resource].add(verb)
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if (key.resource, verb) in self.forbidden or not self._allows(token, verb, key):
            return _status(403, "Forbidden", f"{token or 'you'} may not {verb} {key.resource} {key.name}")
        if verb == "list":
            if request.query.get("watch"):
                return await self._watched(request, key)
            return self._listed(key, request.query)
        if request.content_type.endswith("protobuf"):
            return _status(415, "UnsupportedMediaType", f"unsupported {request.content_type}")
        return self._answer(verb, key, request, json.loads(await request.text() or "{}"))

    def _answer(self, verb: str, key: Key, request: web.Request, body: Object) -> web.Response:
        manager = request.query.get("fieldManager") or request.headers.get("user-agent", "").partition("/")[0]
        old = self.objects.get(key, {})
        if verb == "create":
            key = key._replace(name=body["metadata"]["name"])
            if key in self.objects:
                return _status(409, "AlreadyExists", f"{key.resource} {key.name} is there")
            return self._take(key, updated({}, body, manager), 201)
        if verb == "patch" and request.content_type == _APPLY:
            try:
                new = applied(old, body, manager, force=request.query.get("force") == "true")
            except ConflictingFields as error:
                return _status(409, "Conflict", str(error))
            return self._take(key, new, 200 if old else 201)
        if not old:
            return _status(404, "NotFound", f"{key.resource} {key.name} is not there")
        if verb == "delete":
            del self.objects[key]
            self.changes.append(Change("DELETED", key, old))
            return web.json_response(old)
        known = body.get("metadata", {}).get("resourceVersion", old["metadata"]["resourceVersion"])
        if known != old["metadata"]["resourceVersion"]:
            return _status(409, "Conflict", f"{key.resource} {key.name} has been changed since")
        if verb == "patch":
            if request.content_type != _MERGE:
                return _status(415, "UnsupportedMediaType", f"unsupported {request.content_type}")
            return self._take(key, updated(old, merged(old, body), manager), 200)
        return self._take(key, updated(old, body, manager), 200) if verb == "update" else web.json_response(old)

    def _take(self, key: Key, body: Object, code: int) -> web.Response:
        """Stores it, if it may be so."""
        kind = BY_RESOURCE[key.resource]
        body = {"apiVersion": kind.api_version, "kind": kind.name, **body}
        own = {"namespace": key.namespace} if key.namespace else {}
        body["metadata"] = {**body.get("metadata", {}), **own}
        if words := refusal(kind, _as_given(body), self.objects.get(key)):
            return _status(422, "Invalid", words)
        return web.json_response(self._store(key, body), status=code)

    def _store(self, key: Key, body: Object) -> Object:
        before = self.objects.get(key)
        metadata = body["metadata"] = dict(body["metadata"])
        if before is not None:
            changes_spec = _content(before) != _content(body)
            metadata["generation"] = before["metadata"].get("generation", 1) + changes_spec
        metadata.setdefault("uid", f"uid-{len(self.changes)}")
        metadata["resourceVersion"] = str(len(self.changes) + 1)
        self.objects[key] = body
        self.changes.append(Change("ADDED" if before is None else "MODIFIED", key, body))
        return body

    def _allows(self, token: str, verb: str, key: Key) -> bool:
        """An account's token is its name. The operator, and who has no token at all, may do everything."""
        if token in ("", OPERATOR):
            return True
        if Key("serviceaccounts", key.namespace, token) not in self.objects:
            return False
        group = BY_RESOURCE[key.resource].group
        for bound, binding in self.objects.items():
            if bound.resource != "rolebindings.rbac.authorization.k8s.io" or bound.namespace != key.namespace:
                continue
            if token not in [subject["name"] for subject in binding["subjects"]]:
                continue
            role = self.objects[Key("roles.rbac.authorization.k8s.io", key.namespace, binding["roleRef"]["name"])]
            for rule in role["rules"]:
                names = rule.get("resourceNames") or [key.name]
                plural = BY_RESOURCE[key.resource].plural
                of_kind = group in rule["apiGroups"] and plural in rule["resources"]
                if of_kind and verb in rule["verbs"] and key.name in names:
                    return True
        return False

    def _listed(self, key: Key, query: Any) -> web.Response:
        kind = BY_RESOURCE[key.resource]
        found = [body for other, body in self.objects.items() if _selects(key, other, body, query)]
        metadata = {"resourceVersion": str(len(self.changes))}
        return web.json_response(
            {"kind": f"{kind.name}List", "apiVersion": kind.api_version, "metadata": metadata, "items": found}
        )

    async def _watched(self, request: web.Request, key: Key) -> web.StreamResponse:
        """A line for each change after the version that was asked for, until the watcher goes."""
        if request.query.get("sendInitialEvents"):
            return _status(422, "Invalid", "sendInitialEvents: not here")  # the client lists then
        response = web.StreamResponse(headers={"content-type": "application/json"})
        with contextlib.suppress(ConnectionResetError):  # the watcher has gone
            await response.prepare(request)
            await self._follow(request, key, response)
        return response

    async def _follow(self, request: web.Request, key: Key, response: web.StreamResponse) -> None:
        seen = int(request.query.get("resourceVersion") or len(self.changes))
        while request.transport is not None and not request.transport.is_closing():
            for change in self.changes[seen:]:
                if _selects(key, change.key, change.object, request.query):
                    line = json.dumps({"type": change.kind, "object": change.object})
                    await response.write(line.encode() + b"\n")
            seen = len(self.changes)
            await asyncio.sleep(_POLL_S)


def _key(path: str) -> Key | None:
    parts = path.split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    group = "" if parts[0] == "api" else parts[1]
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    if not rest or len(rest) > 3:
        return None
    resource = f"{rest[0]}.{group}" if group else rest[0]
    return Key(resource, namespace, rest[1] if len(rest) > 1 else "") if resource in BY_RESOURCE else None


def _selects(asked: Key, key: Key, body: Object, query: Any) -> bool:
    if key.resource != asked.resource or asked.namespace not in ("", key.namespace):
        return False
    labels = body["metadata"].get("labels", {})
    for part in filter(None, query.get("labelSelector", "").split(",")):
        name, _, value = part.partition("=")
        if labels.get(name) != value.lstrip("="):
            return False
    wanted = query.get("fieldSelector", "")
    return not wanted or wanted == f"metadata.name={key.name}"


def _content(body: Object) -> Object:
    return {name: value for name, value in body.items() if name not in ("metadata", "status")}


def _as_given(body: Object) -> Object:
    """Without what the server itself writes."""
    own = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")
    metadata = {name: value for name, value in body["metadata"].items() if name not in own}
    return {name: value for name, value in body.items() if name != "status"} | {"metadata": metadata}


def merged(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    kept = old if isinstance(old, dict) else {}
    names = [*kept, *(name for name in patch if name not in kept)]
    values = {name: merged(kept.get(name), patch[name]) if name in patch else kept[name] for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _status(code: int, reason: str, message: str) -> web.Response:
    told = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason}
    return web.json_response(told | {"message": message}, status=code)


@contextmanager
def fake_kube() -> Iterator[FakeKube]:
    """It serves on a thread of its own, on loopback."""
    fake, loop = FakeKube(), asyncio.new_event_loop()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)

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
