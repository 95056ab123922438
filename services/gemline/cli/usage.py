"""`gemline usage`: what tenants used, added up or record by record. For operators."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gemline.cli.operating import RedisUrl, run
from gemline.cli.terminal import printable

if TYPE_CHECKING:
    from gemline.cluster.operations import Operations
    from gemline.cluster.usage import UsageFilter, UsageSum

_HEADINGS = ("tenant", "model", "requests", "prompt tokens", "of them cached", "completion tokens", "KV byte-seconds")
_NUM_NAMES = 2  # columns that are no numbers
_MOMENT = "2026-11-01, 2026-11-01T12:00:00Z (UTC unless it says another zone), or 7d for seven days ago"


def usage(
    tenant: Annotated[str, typer.Option(help="of this one alone", show_default=False)] = "",
    project: Annotated[str, typer.Option(help="of projects of this name alone", show_default=False)] = "",
    key_id: Annotated[str, typer.Option(help="of this key alone", show_default=False)] = "",
    since: Annotated[str | None, typer.Option(help=f"settled then or later: {_MOMENT}", show_default=False)] = None,
    until: Annotated[str | None, typer.Option(help="settled before then", show_default=False)] = None,
    format: Annotated[
        Literal["table", "csv", "json"],
        typer.Option(help="sums by tenant and model; or every record, as CSV or as a JSON object a line"),
    ] = "table",
    redis_url: RedisUrl = None,
) -> None:
    """What was used: a table of sums, or every record, the oldest first."""
    from gemline.cluster.moments import moment_ms
    from gemline.cluster.usage import UsageFilter

    wanted = UsageFilter(
        tenant=tenant,
        project=project,
        key_id=key_id,
        since_ms=0 if since is None else moment_ms(since, "since"),
        until_ms=None if until is None else moment_ms(until, "until"),
    )
    if format == "table":
        for line in _table(run(redis_url, lambda operations: operations.usage.sums(wanted))):
            print(line)
    else:
        run(redis_url, lambda operations: _export(operations, wanted, format))


async def _export(operations: "Operations", wanted: "UsageFilter", format: str) -> None:
    """A page at a time, so that any number of records fits into memory."""
    from gemline.cluster.usage_export import EXPORTS

    async for text in EXPORTS["csv" if format == "csv" else "jsonl"](operations.usage.pages(wanted)):
        sys.stdout.write(text)


def _table(sums: "Sequence[UsageSum]") -> list[str]:
    rows = [_HEADINGS, *map(_row, sums)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_aligned(row, widths)).rstrip() for row in rows]


def _row(one: "UsageSum") -> tuple[str, ...]:
    numbers = (one.num_requests, one.prompt_tokens, one.cached_tokens, one.completion_tokens, one.kv_byte_seconds)
    return (printable(one.tenant), printable(one.model), *map(str, numbers))


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if index < _NUM_NAMES else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
