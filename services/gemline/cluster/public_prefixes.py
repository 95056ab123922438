"""Texts that an operator has declared public: prompts that begin so share KV blocks across tenants. In Redis."""

import hashlib
import json
from dataclasses import asdict, dataclass

from redis.asyncio import Redis

from gemline.cluster.audit import Audit
from gemline.cluster.connection import calling
from gemline.errors import ConfigurationError

PUBLIC_PREFIXES = "gemline:public_prefixes"  # hash: name -> JSON

MAX_PREFIXES = 64  # every prompt is compared with each one of its model
MAX_BYTES = 2**20  # of a text
_MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class PublicPrefix:
    """`text` is what a conversation's first message begins with or, if `is_raw`, a raw prompt."""

    name: str
    model: str
    text: str
    is_raw: bool = False


class PublicPrefixes:
    """Those in Redis. Methods raise Unavailable while it is away."""

    def __init__(self, redis: Redis, actor: str = "operator") -> None:
        """Changed by `actor`, a name for the audit."""
        self._redis = redis
        self._actor = actor
        self._audit = Audit(redis)

    async def put(self, prefix: PublicPrefix) -> None:
        """Declare one, in place of the one of that name. Raises ConfigurationError for what cannot be one."""
        _check(prefix)
        async with calling(self._redis):
            is_new = not await self._redis.hexists(PUBLIC_PREFIXES, prefix.name)
            if is_new and await self._redis.hlen(PUBLIC_PREFIXES) >= MAX_PREFIXES:
                raise ConfigurationError(
                    f"there are {MAX_PREFIXES} public prefixes, as many as may be; remove one first"
                )
            await self._redis.hset(PUBLIC_PREFIXES, prefix.name, json.dumps(asdict(prefix)))
        await self._audit.add(self._actor, "prefix.put", prefix.name, after=_audited(prefix))

    async def remove(self, name: str) -> bool:
        """Whether there was one. What is cached of it stays until it is evicted; no request finds it any more."""
        async with calling(self._redis):
            was_there = bool(await self._redis.hdel(PUBLIC_PREFIXES, name))
        if was_there:
            await self._audit.add(self._actor, "prefix.remove", name)
        return was_there

    async def all(self) -> tuple[PublicPrefix, ...]:
        """By name."""
        async with calling(self._redis):
            stored = await self._redis.hgetall(PUBLIC_PREFIXES)
        return tuple(sorted((PublicPrefix(**json.loads(data)) for data in stored.values()), key=lambda it: it.name))


def _audited(prefix: PublicPrefix) -> str:
    """Without the text, which tells apart by its digest alone."""
    text = prefix.text.encode()
    told = {"model": prefix.model, "is_raw": prefix.is_raw, "num_bytes": len(text)}
    return json.dumps({**told, "sha256": hashlib.sha256(text).hexdigest()}, separators=(",", ":"))


def _check(prefix: PublicPrefix) -> None:
    if not 1 <= len(prefix.name) <= _MAX_NAME or not prefix.name.isprintable():
        raise ConfigurationError(
            f"name must have 1 to {_MAX_NAME} printable characters, has {len(prefix.name)}", param="name"
        )
    if not prefix.text.strip():
        raise ConfigurationError("text is empty: there is nothing to share", param="text")
    if (num_bytes := len(prefix.text.encode())) > MAX_BYTES:
        raise ConfigurationError(f"text has {num_bytes} bytes, over the {MAX_BYTES} that may be shared", param="text")
