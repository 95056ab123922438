"""`gemline audit`: who changed what of tenants, projects, keys and public prefixes. For operators."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gemline.cli.operating import RedisUrl, run
from gemline.cli.terminal import printable

if TYPE_CHECKING:
    from gemline.cluster.audit import AuditLine


def audit(
    limit: Annotated[int, typer.Option(help="most lines; at most 1000")] = 100,
    before: Annotated[str, typer.Option(help="id of a line: older ones than that", show_default=False)] = "",
    format: Annotated[Literal["lines", "json"], typer.Option(help="for people; or a JSON object a line")] = "lines",
    redis_url: RedisUrl = None,
) -> None:
    """Every change that was made, the newest first."""
    for line in run(redis_url, lambda operations: operations.audit.newest(limit, before)):
        print(json.dumps(_states(line)) if format == "json" else _words(line))


def _states(line: "AuditLine") -> dict[str, Any]:
    return {
        name: json.loads(value) if name in ("before", "after") and value else value
        for name, value in asdict(line).items()
    }


def _words(line: "AuditLine") -> str:
    """When, who, what, of which, and of a change the fields that it changed."""
    when = datetime.fromtimestamp(line.at_ms / 1e3, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    words = [when, line.actor, line.action, line.subject]
    if line.before and line.after:
        words.append(_difference(json.loads(line.before), json.loads(line.after)))
    return "  ".join(map(printable, words))


def _difference(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> str:
    parts: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            parts += [inner] if (inner := _difference(was, now, f"{prefix}{name}.")) else []
        elif was != now:
            parts.append(f"{prefix}{name}: {json.dumps(was)} -> {json.dumps(now)}")
    return ", ".join(parts)
