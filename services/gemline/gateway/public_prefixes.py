"""How much of a prompt is public: the registry in Redis, as each model's token ids. No request waits for Redis."""

import asyncio
import logging
from collections.abc import Sequence

from gemline.cluster.public_prefixes import PublicPrefix, PublicPrefixes
from gemline.cluster.records import ModelCard
from gemline.errors import GemlineError
from gemline.gateway.catalog import Catalog
from gemline.gateway.tokenizers import Tokenizers
from gemline.text.chat import Turn
from gemline.text.tokenizer import Tokenizer

FRESH_S = 5.0  # a prefix that was declared or removed counts after this long

log = logging.getLogger(__name__)


class PublicTokens:
    """Follows the registry; while Redis is away, what was known holds."""

    def __init__(
        self, registry: PublicPrefixes | None, catalog: Catalog, tokenizers: Tokenizers, fresh_s: float = FRESH_S
    ) -> None:
        """Without a registry nothing is public."""
        self._registry = registry
        self._catalog = catalog
        self._tokenizers = tokenizers
        self._fresh_s = fresh_s
        self._encoded: dict[tuple[PublicPrefix, str], tuple[int, ...]] = {}  # by prefix and tokenizer
        self._following: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow the registry until `stop`."""
        if self._registry is not None:
            self._following = asyncio.create_task(self._follow(self._registry), name="public prefixes")

    def stop(self) -> None:
        """Follow it no longer."""
        if self._following is not None:
            self._following.cancel()

    def num_public(self, card: ModelCard, token_ids: Sequence[int]) -> int:
        """How many of the prompt's first tokens are those of a public prefix of the model."""
        return max(
            (
                _num_common(ids, token_ids)
                for (prefix, sha256), ids in self._encoded.items()
                if prefix.model == card.model_id and sha256 == card.tokenizer_sha256
            ),
            default=0,
        )

    async def _follow(self, registry: PublicPrefixes) -> None:
        while True:
            try:
                await self._refresh(registry)
            except GemlineError as error:
                log.warning("public prefixes cannot be read, those known still hold: %s", error)
            except Exception:
                log.exception("public prefixes cannot be used, those known still hold")
            await asyncio.sleep(self._fresh_s)

    async def _refresh(self, registry: PublicPrefixes) -> None:
        prefixes = await registry.all()
        encoded: dict[tuple[PublicPrefix, str], tuple[int, ...]] = {}
        for card in self._catalog.cards():
            own = [prefix for prefix in prefixes if prefix.model == card.model_id]
            if not own or not self._tokenizers.has(card):
                continue
            tokenizer = await self._tokenizers.get(card)
            for prefix in own:
                key = prefix, card.tokenizer_sha256
                known = self._encoded.get(key)
                encoded[key] = await asyncio.to_thread(_encode, tokenizer, prefix) if known is None else known
        self._encoded = encoded


def _encode(tokenizer: Tokenizer, prefix: PublicPrefix) -> tuple[int, ...]:
    """A conversation's first message may go on behind the text: whoever compares takes what is equal."""
    if prefix.is_raw:
        return tuple(tokenizer.encode_prompt(prefix.text))
    return tuple(tokenizer.encode_chat([Turn("user", prefix.text)]))


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first ids are equal."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
