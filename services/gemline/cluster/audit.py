"""The audit: a line for every change that an operator makes, the newest last, never changed. In Redis.

gemline:{access}:audit      stream  who, what, of which, before, after; never a secret, never a prompt
"""

import re
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis
from redis.typing import EncodableT, FieldT

from gemline.cluster.connection import calling
from gemline.errors import ConfigurationError

AUDIT = "gemline:{access}:audit"
MAX_LINES = 1000  # of one answer

_ENTRY = re.compile(r"[0-9]{1,15}-[0-9]{1,15}", re.ASCII)


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One change. `before` and `after` are JSON, empty where there was nothing."""

    line_id: str
    at_ms: int  # of Redis's clock
    actor: str
    action: str
    subject: str
    before: str
    after: str


class Audit:
    """Methods raise Unavailable while Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def newest(self, limit: int = MAX_LINES, before: str = "") -> tuple[AuditLine, ...]:
        """The newest first, of those before the line `before` if there is one.

        Raises ConfigurationError for a limit that is not from 1 to MAX_LINES, or a `before` that is no line's id.
        """
        if not 1 <= limit <= MAX_LINES:
            raise ConfigurationError(f"limit must be from 1 to {MAX_LINES}, is {limit}", param="limit")
        last = f"({checked_entry(before, 'before')}" if before else "+"
        async with calling(self._redis):
            found = await self._redis.xrevrange(AUDIT, max=last, count=limit)
        return tuple(_line(*entry) for entry in cast("list[tuple[bytes, dict[bytes, bytes]]]", found))

    async def add(self, actor: str, action: str, subject: str, before: str = "", after: str = "") -> None:
        """One line, for what does not stand beside it in Redis and cannot be written with it."""
        fields: dict[FieldT, EncodableT] = {"actor": actor, "action": action, "subject": subject}
        fields |= {"before": before, "after": after}
        async with calling(self._redis):
            await self._redis.xadd(AUDIT, fields)


def checked_entry(entry_id: str, param: str) -> str:
    """The id of an entry of a stream, as one was given out before. Raises ConfigurationError for any other text."""
    if not _ENTRY.fullmatch(entry_id):
        raise ConfigurationError(f"{param} {entry_id[:80]!r} is not an id that was given out here", param=param)
    return entry_id


def _line(entry_id: bytes, fields: dict[bytes, bytes]) -> AuditLine:
    values = {name: fields.get(name.encode(), b"").decode() for name in ("actor", "action", "subject")}
    states = {name: fields.get(name.encode(), b"").decode() for name in ("before", "after")}
    text = entry_id.decode()
    return AuditLine(text, int(text.partition("-")[0]), **values, **states)
