"""Records as the admin API shows them. A key's secret and its digest are in none of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gemline.cluster.access import KeyRecord, ProjectRecord, TenantRecord
from gemline.cluster.audit import AuditLine
from gemline.cluster.public_prefixes import PublicPrefix

JsonObject = dict[str, Any]


def tenant_view(record: TenantRecord) -> JsonObject:
    """A tenant."""
    own = {"weight": record.weight, "band": record.band, "is_disabled": record.is_disabled}
    return {"id": record.tenant_id, "object": "tenant", **_common(record), **own}


def project_view(record: ProjectRecord) -> JsonObject:
    """A project."""
    return {"id": record.project_id, "object": "project", "tenant_id": record.tenant_id, **_common(record)}


def key_view(record: KeyRecord) -> JsonObject:
    """A key, by its id."""
    return {
        "id": record.key_id,
        "object": "key",
        "tenant_id": record.tenant_id,
        "project_id": record.project_id or None,
        **_common(record),
        "expires_at": record.expires_ms // 1000 or None,
        "replaced_by": record.replaced_by or None,
    }


def prefix_view(prefix: PublicPrefix) -> JsonObject:
    """A public prefix, with how long its text is."""
    told = {"model": prefix.model, "is_raw": prefix.is_raw, "num_characters": len(prefix.text)}
    return {"id": prefix.name, "object": "public_prefix", **told}


def audit_view(line: AuditLine) -> JsonObject:
    """A change; `before` and `after` as they were recorded."""
    states = {
        name: json.loads(text) if text else None for name, text in (("before", line.before), ("after", line.after))
    }
    told = {"actor": line.actor, "action": line.action, "subject": line.subject}
    return {"id": line.line_id, "object": "audit_line", "at_ms": line.at_ms, **told, **states}


def list_view(items: Sequence[JsonObject], after: str | None = None) -> JsonObject:
    """Many; `next` is where the following page begins, where there are pages."""
    page = {} if after is None else {"has_more": bool(after), "next": after or None}
    return {"object": "list", "data": list(items), **page}


def deleted_view(kind: str, name: str) -> JsonObject:
    """What is there no longer."""
    return {"id": name, "object": f"{kind}.deleted", "deleted": True}


def _common(record: TenantRecord | ProjectRecord | KeyRecord) -> JsonObject:
    return {
        "label": record.label,
        "limits": asdict(record.limits),
        "models": None if record.models is None else list(record.models),
        "created_at": record.created_ms // 1000,
    }
