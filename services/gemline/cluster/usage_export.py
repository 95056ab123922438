"""Usage records as text, a page at a time: CSV with a header row, or a JSON object a line. Knows no Redis."""

import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import asdict, fields

from gemline.cluster.limits import UsageRecord
from gemline.cluster.usage import UsageEntry, UsagePage

COLUMNS = ("entry_id", *(field.name for field in fields(UsageRecord)))


def as_values(entry: UsageEntry) -> dict[str, str | int]:
    """By the names of COLUMNS."""
    return {"entry_id": entry.entry_id, **asdict(entry.record)}


async def csv_text(pages: AsyncIterator[UsagePage]) -> AsyncIterator[str]:
    """The header row stands in the first piece, with the first page: what fails at once fails before any text."""
    header = _row(COLUMNS)
    async for page in pages:
        yield header + _rows(page.entries)
        header = ""
    if header:
        yield header


async def jsonl_text(pages: AsyncIterator[UsagePage]) -> AsyncIterator[str]:
    """Numbers are numbers."""
    async for page in pages:
        yield "".join(json.dumps(as_values(entry), separators=(",", ":")) + "\n" for entry in page.entries)


EXPORTS: dict[str, Callable[[AsyncIterator[UsagePage]], AsyncIterator[str]]] = {"csv": csv_text, "jsonl": jsonl_text}


def _rows(entries: Iterable[UsageEntry]) -> str:
    return "".join(_row(as_values(entry).values()) for entry in entries)


def _row(values: Iterable[str | int]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
