"""Options that tenants, projects and keys share: limits, models, a label. Each is left as it is unless given."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

from gemline.errors import ConfigurationError

_LIMITS = "Limits"
NONE = "none"

RequestsPerMin = Annotated[
    str | None, typer.Option(help="N, or none", metavar="N|none", rich_help_panel=_LIMITS, show_default=False)
]
TokensPerMin = Annotated[
    str | None,
    typer.Option(help="of prompts and answers", metavar="N|none", rich_help_panel=_LIMITS, show_default=False),
]
ConcurrentRequests = Annotated[
    str | None, typer.Option(help="that run at once", metavar="N|none", rich_help_panel=_LIMITS, show_default=False)
]
TokenBudget = Annotated[
    str | None, typer.Option(help="tokens of a period", metavar="N|none", rich_help_panel=_LIMITS, show_default=False)
]
KvByteSeconds = Annotated[
    str | None,
    typer.Option(
        help="bytes of KV times seconds, of a period", metavar="N|none", rich_help_panel=_LIMITS, show_default=False
    ),
]
Period = Annotated[
    Literal["day", "month"] | None,
    typer.Option(help="of the last two, in UTC; month unless given", rich_help_panel=_LIMITS, show_default=False),
]
Models = Annotated[
    str | None, typer.Option(help="the only ones that may be used, with commas between; none: all", show_default=False)
]
Label = Annotated[str | None, typer.Option(help="for people to read", show_default=False)]

_COUNTS = ("requests_per_min", "tokens_per_min", "concurrent_requests", "token_budget", "kv_byte_seconds")
_PLAIN = ("label", "weight", "band", "is_disabled", "expires_ms")


def changes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What was given among a command's arguments, as `gemline.cluster.changes` takes it. Raises ConfigurationError."""
    found = {name: arguments[name] for name in _PLAIN if arguments.get(name) is not None}
    limits: dict[str, Any] = {name: _count(name, arguments[name]) for name in _COUNTS if arguments[name] is not None}
    if arguments["period"] is not None:
        limits["period"] = arguments["period"]
    if limits:
        found["limits"] = limits
    if arguments["models"] is not None:
        found["models"] = _models(arguments["models"])
    return found


def _count(name: str, text: str) -> int | None:
    if text == NONE:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        flag = f"--{name.replace('_', '-')}"
        raise ConfigurationError(f"{flag} must be a number or {NONE}, is {text[:80]!r}", param=name)
    return int(text)


def _models(text: str) -> tuple[str, ...] | None:
    return None if text == NONE else tuple(name.strip() for name in text.split(",") if name.strip())
