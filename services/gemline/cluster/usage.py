"""What was used: a record for each settled request, read in pages, added up by tenant and model. In Redis."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis

from gemline.cluster.audit import checked_entry
from gemline.cluster.connection import calling
from gemline.cluster.limit_scripts import USAGE
from gemline.cluster.limits import UsageRecord
from gemline.errors import ConfigurationError

PAGE_RECORDS = 200  # read at once: to parse them takes an event loop that serves tokens besides about 2 ms
MAX_RECORDS = 1000  # of one page that is given out
MAX_SCANNED = 50_000  # records that are looked at for one such page, or for one page of sums

_MAX_MS = 2**53
_NUMBERS = {field.name for field in fields(UsageRecord) if field.type is int}


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which records: empty is any. Settled in [since_ms, until_ms), of Redis's clock; None: until now."""

    tenant: str = ""
    project: str = ""
    key_id: str = ""
    since_ms: int = 0
    until_ms: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("since", self.since_ms), ("until", self.until_ms)):
            if value is not None and not 0 <= value <= _MAX_MS:
                raise ConfigurationError(f"{name} must be from 0 to {_MAX_MS} ms, is {value}", param=name)

    def takes(self, record: UsageRecord) -> bool:
        """Whether it is one of them; its time is looked at before."""
        wanted = ((self.tenant, record.tenant), (self.project, record.project), (self.key_id, record.key_id))
        return all(name in ("", found) for name, found in wanted)


class UsageEntry(NamedTuple):
    """A record, and the id under which the stream has it: no two have the same, and later ones are greater."""

    entry_id: str
    record: UsageRecord


class UsagePage(NamedTuple):
    """Some of them, the oldest first."""

    entries: tuple[UsageEntry, ...]
    last_id: str  # of all that were looked at; empty: there are no more


@dataclass(slots=True)
class UsageSum:
    """What one tenant used of one model."""

    tenant: str
    model: str
    num_requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    kv_byte_seconds: int = 0

    def add(self, record: UsageRecord) -> None:
        """One request more."""
        self.num_requests += 1
        self._add_amounts(record)

    def join(self, other: "UsageSum") -> None:
        """What the same tenant used of the same model besides."""
        self.num_requests += other.num_requests
        self._add_amounts(other)

    def _add_amounts(self, used: "UsageRecord | UsageSum") -> None:
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "kv_byte_seconds"):
            setattr(self, name, getattr(self, name) + getattr(used, name))


class SumsPage(NamedTuple):
    """What some of the records come to."""

    sums: tuple[UsageSum, ...]  # by tenant and model
    last_id: str  # of all that were looked at; empty: there are no more


class UsageLog:
    """Methods raise Unavailable while Redis is away, and ConfigurationError for what cannot be asked."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def pages(self, wanted: UsageFilter, after: str = "") -> AsyncGenerator[UsagePage, None]:
        """All there are behind the entry `after`, never more than PAGE_RECORDS of them in memory."""
        start = f"({checked_entry(after, 'after')}" if after else str(wanted.since_ms)
        stop = "+" if wanted.until_ms is None else str(wanted.until_ms - 1)
        if wanted.until_ms is not None and wanted.until_ms <= wanted.since_ms:
            return
        while True:
            async with calling(self._redis):
                found = await self._redis.xrange(USAGE, min=start, max=stop, count=PAGE_RECORDS)
            entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", found)  # as a client without decoding gives them
            if not entries:
                return
            last_id = entries[-1][0].decode()
            read = (UsageEntry(entry_id.decode(), _record(values)) for entry_id, values in entries)
            yield UsagePage(tuple(entry for entry in read if wanted.takes(entry.record)), last_id)
            if len(entries) < PAGE_RECORDS:
                return
            start = f"({last_id}"

    async def page(self, wanted: UsageFilter, limit: int = MAX_RECORDS, after: str = "") -> UsagePage:
        """At most `limit` of them, fewer where few of many are wanted; go on behind `last_id` unless it is empty."""
        if not 1 <= limit <= MAX_RECORDS:
            raise ConfigurationError(f"limit must be from 1 to {MAX_RECORDS}, is {limit}", param="limit")
        found: list[UsageEntry] = []
        num_scanned = 0
        async with aclosing(self.pages(wanted, after)) as pages:
            async for page in pages:
                found += page.entries
                num_scanned += PAGE_RECORDS
                if len(found) >= limit:
                    return UsagePage(tuple(found[:limit]), found[limit - 1].entry_id)
                if num_scanned >= MAX_SCANNED:
                    return UsagePage(tuple(found), page.last_id)
        return UsagePage(tuple(found), "")

    async def sums(self, wanted: UsageFilter) -> tuple[UsageSum, ...]:
        """Of all there are, by tenant and model; for a process that does nothing else meanwhile."""
        page = await self.sums_page(wanted)
        found = {(one.tenant, one.model): one for one in page.sums}
        while page.last_id:
            page = await self.sums_page(wanted, page.last_id)
            for one in page.sums:
                found.setdefault((one.tenant, one.model), UsageSum(one.tenant, one.model)).join(one)
        return tuple(found[whose] for whose in sorted(found))

    async def sums_page(self, wanted: UsageFilter, after: str = "") -> SumsPage:
        """Of the next MAX_SCANNED records behind the entry `after`; go on behind `last_id` unless it is empty."""
        found: dict[tuple[str, str], UsageSum] = {}
        last_id, num_scanned, is_whole = "", 0, True
        async with aclosing(self.pages(wanted, after)) as pages:
            async for page in pages:
                if num_scanned >= MAX_SCANNED:
                    is_whole = False
                    break
                for _, record in page.entries:
                    whose = (record.tenant, record.model)
                    found.setdefault(whose, UsageSum(*whose)).add(record)
                num_scanned += PAGE_RECORDS
                last_id = page.last_id
        return SumsPage(tuple(found[whose] for whose in sorted(found)), "" if is_whole else last_id)


def _record(stored: dict[bytes, bytes]) -> UsageRecord:
    """Fields of a later release are left out."""
    known = {field.name for field in fields(UsageRecord)}
    values = {name.decode(): value.decode() for name, value in stored.items()}
    read: dict[str, Any] = {
        name: int(value) if name in _NUMBERS else value for name, value in values.items() if name in known
    }
    return UsageRecord(**read)
