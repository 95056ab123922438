"""Tenants, projects and keys as the terminal shows them: a line each, or all of one as JSON."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gemline.cli.terminal import printable

if TYPE_CHECKING:
    from gemline.cluster.access import KeyRecord, ProjectRecord, TenantRecord
    from gemline.cluster.limits import Limits


def as_json(fields: dict[str, Any]) -> str:
    """All of one."""
    return json.dumps(fields, indent=2)


def tenant_line(record: "TenantRecord") -> str:
    """Its name, share, and what it may."""
    own = [f"weight {record.weight:g}", record.band, *(["disabled"] if record.is_disabled else [])]
    return "  ".join([record.tenant_id, *own, *_common(record)])


def project_line(record: "ProjectRecord") -> str:
    """Its name and what it may."""
    return "  ".join([record.project_id, *_common(record)])


def key_line(record: "KeyRecord", now_ms: int) -> str:
    """Its id, project, end, and what it may."""
    project = [f"project {record.project_id}"] if record.project_id else []
    replaced = [f"replaced by {record.replaced_by}"] if record.replaced_by else []
    return "  ".join([record.key_id, *project, _end(record.expires_ms, now_ms), *replaced, *_common(record)])


def _end(expires_ms: int, now_ms: int) -> str:
    if not expires_ms:
        return "never expires"
    when = datetime.fromtimestamp(expires_ms / 1e3, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"expired {when}" if expires_ms <= now_ms else f"expires {when}"


def _common(record: "TenantRecord | ProjectRecord | KeyRecord") -> list[str]:
    models = [] if record.models is None else [f"models {printable(','.join(record.models)) or 'none'}"]
    label = [f"({printable(record.label)})"] if record.label else []
    return [_limits(record.limits), *models, *label]


def _limits(limits: "Limits") -> str:
    words = {
        "requests/min": limits.requests_per_min,
        "tokens/min": limits.tokens_per_min,
        "at once": limits.concurrent_requests,
        f"tokens/{limits.period}": limits.token_budget,
        f"KV byte-seconds/{limits.period}": limits.kv_byte_seconds,
    }
    return ", ".join(f"{value} {word}" for word, value in words.items() if value is not None) or "no limits"
