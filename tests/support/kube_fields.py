"""Who owns which field of an object, as server-side apply keeps it in `metadata.managedFields`. Lists are atomic.

https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

from typing import Any, NamedTuple

Object = dict[str, Any]
Path = tuple[str, ...]
APPLY, UPDATE = "Apply", "Update"
_OF_THE_SERVER = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "name", "namespace")


class Owner(NamedTuple):
    manager: str
    operation: str


Owners = dict[Owner, set[Path]]


def owners(body: Object) -> Owners:
    """As the object's own metadata say; an empty entry stands for nobody."""
    entries = body.get("metadata", {}).get("managedFields", [])
    return {Owner(it["manager"], it["operation"]): set(_paths(it["fieldsV1"])) for it in entries if it}


def with_owners(body: Object, found: Owners) -> Object:
    """The object with these in its metadata."""
    entries = [
        {"manager": it.manager, "operation": it.operation, "fieldsType": "FieldsV1", "fieldsV1": _nested(paths)}
        for it, paths in found.items()
        if paths
    ]
    return body | {"metadata": body["metadata"] | {"managedFields": entries}}


def updated(old: Object, new: Object, manager: str) -> Object:
    """`new` in place of `old`: what it changes is the manager's from now on, and nobody else's."""
    before, after = _leaves(old), _leaves(new)
    changed = {path for path in before.keys() | after.keys() if before.get(path, ...) != after.get(path, ...)}
    found = {owner: paths - changed for owner, paths in owners(new).items()}
    own = Owner(manager, UPDATE)
    found[own] = found.get(own, set()) | (changed & after.keys())
    return with_owners(new, found)


class ConflictingFields(Exception):
    """Somebody else has given them other values."""


def applied(old: Object, config: Object, manager: str, *, force: bool) -> Object:
    """`old` with what the config says, less what the manager has let go of. Raises ConflictingFields."""
    found, own = owners(old), Owner(manager, APPLY)
    now, wanted = _leaves(old), _leaves(config)
    theirs = {
        path: owner
        for owner, paths in found.items()
        for path in paths & wanted.keys()
        if owner != own and now.get(path, ...) != wanted[path]
    }
    if theirs and not force:
        told = ", ".join(f"{owner.manager}: .{'.'.join(path)}" for path, owner in theirs.items())
        raise ConflictingFields(f"Apply failed with {len(theirs)} conflicts: {told}")
    found = {owner: paths - theirs.keys() for owner, paths in found.items()}
    others = set[Path]().union(*(paths for owner, paths in found.items() if owner != own))
    kept = _less(old, found.get(own, set()) - wanted.keys() - others)
    return with_owners(_overlaid(kept, config), found | {own: set(wanted)})


def _overlaid(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {name: _overlaid(old.get(name), value) for name, value in new.items()}


def _less(body: Object, paths: set[Path]) -> Object:
    """Without these leaves, and without what they leave empty."""
    kept: Object = {}
    for name, value in body.items():
        below = {path[1:] for path in paths if path[0] == name}
        if () in below:
            continue
        if below and isinstance(value, dict):
            value = _less(value, below)
            if not value:
                continue
        kept[name] = value
    return kept


def _leaves(body: Object) -> dict[Path, Any]:
    """Every field that somebody may own, by its path."""
    metadata = {name: value for name, value in body.get("metadata", {}).items() if name not in _OF_THE_SERVER}
    rest = {name: value for name, value in body.items() if name not in ("apiVersion", "kind", "metadata", "status")}
    return dict(_walk({"metadata": metadata} | rest if metadata else rest, ()))


def _walk(value: Any, path: Path) -> Any:
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _walk(part, (*path, name))
    elif path:
        yield path, value


def _nested(paths: set[Path]) -> Object:
    found: Object = {}
    for path in paths:
        place = found
        for part in path:
            place = place.setdefault(f"f:{part}", {})
    return found


def _paths(fields: Object) -> Any:
    for name, below in fields.items():
        if not below:
            yield (name.removeprefix("f:"),)
        for path in _paths(below):
            yield (name.removeprefix("f:"), *path)
