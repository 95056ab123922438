"""A model whose tokens can be worked out by hand, for tests of everything around a model. Knows no Gemma."""

from collections.abc import Iterable

import torch

from gemline.engine.batch import Batch, Score
from gemline.engine.config import Gemma2Config
from gemline.engine.engine import Engine
from gemline.engine.kv_cache import KvCache
from gemline.engine.options import EngineOptions
from gemline_kernels.decoding import Decoder

TOY_CONFIG = Gemma2Config(
    vocab_size=97,
    hidden_size=2,
    intermediate_size=2,
    num_hidden_layers=2,  # layer 0 is local, layer 1 global
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=2,
    max_position_embeddings=64,
    sliding_window=6,
)
_LOCAL_LAYER, _GLOBAL_LAYER = 0, 1


def toy_next(token_ids: Iterable[int], config: Gemma2Config = TOY_CONFIG) -> int:
    """The token the toy says after those: (all + 3 * the window) mod V, over (token + 1) * (position + 2)."""
    terms = [(token + 1) * (position + 2) for position, token in enumerate(token_ids)]
    return (sum(terms) + 3 * sum(terms[-config.sliding_window :])) % config.vocab_size


def toy_answer(prompt: Iterable[int], num_tokens: int, config: Gemma2Config = TOY_CONFIG) -> list[int]:
    """The first tokens the toy says after a prompt, greedily."""
    token_ids = list(prompt)
    num_prompt = len(token_ids)
    for _ in range(num_tokens):
        token_ids.append(toy_next(token_ids, config))
    return token_ids[num_prompt:]


class ToyModel:
    """Keeps tokens and positions in the cache and reads them back, so that a wrong block gives a wrong token.

    A sequence whose last token is `nan_token_id` gets NaN logits; a batch that holds `broken_token_id` raises.
    `looks_ahead`: it has a decoder, too.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        config: Gemma2Config = TOY_CONFIG,
        nan_token_id: int | None = None,
        broken_token_id: int | None = None,
        *,
        looks_ahead: bool = False,
    ) -> None:
        self._config = config
        self._nan_token_id = nan_token_id
        self._broken_token_id = broken_token_id
        self._looks_ahead = looks_ahead

    def forward(self, batch: Batch, cache: KvCache, score: Score | None = None) -> torch.Tensor:
        """The likeliest token is `toy_next`; each one further up from it, and around, is half a nat less likely."""
        self._write(batch, cache)
        if self._broken_token_id in batch.token_ids_T.tolist():
            raise RuntimeError(f"token {self._broken_token_id} breaks the toy")
        rows = [self._logits(batch, cache, row) for row in batch.sample_rows.tolist()]
        num_sampled = len(rows) - batch.num_scored
        if score is not None and batch.num_scored:
            score(0, torch.stack(rows[num_sampled:]))
        return torch.stack(rows[:num_sampled]) if num_sampled else torch.empty((0, self._config.vocab_size))

    def decoder(self, cache: KvCache, num_rows: int) -> Decoder | None:
        """Rows that compute as they are launched, if it looks ahead."""
        from gemline.engine.toy_decoder import ToyDecoder  # which is made of this model

        return ToyDecoder(self, cache, num_rows) if self._looks_ahead else None

    def _write(self, batch: Batch, cache: KvCache) -> None:
        shape = (-1, 1, self._config.head_dim)
        keys_TGK = (batch.token_ids_T + 1.0).view(-1, 1, 1).expand(shape)
        values_TGK = (batch.positions_T + 1.0).view(-1, 1, 1).expand(shape)
        cache.write(_LOCAL_LAYER, batch.local_slots_T, keys_TGK, values_TGK)
        cache.write(_GLOBAL_LAYER, batch.global_slots_T, keys_TGK, values_TGK)

    def _logits(self, batch: Batch, cache: KvCache, row: int) -> torch.Tensor:
        vocab_size = self._config.vocab_size
        if int(batch.token_ids_T[row]) == self._nan_token_id:
            return torch.full((vocab_size,), torch.nan)
        sequence = next(b for b, start in enumerate(batch.query_start[1:]) if row < start)
        stop = int(batch.positions_T[row]) + 1
        window_start = max(0, stop - self._config.sliding_window)
        total = _read(cache, _GLOBAL_LAYER, batch.global_table_BP[sequence], 0, stop)
        total += 3 * _read(cache, _LOCAL_LAYER, batch.local_table_BP[sequence], window_start, stop)
        return ((torch.arange(vocab_size) - total) % vocab_size) * -0.5


def _read(cache: KvCache, layer: int, table_P: torch.Tensor, start: int, stop: int) -> int:
    """The sum of (token + 1) * (position + 2); exact, as float32 holds whole numbers up to 2**24."""
    positions_T = torch.arange(start, stop)
    slots_T = table_P[positions_T // cache.block_size] * cache.block_size + positions_T % cache.block_size
    keys_TGK, values_TGK, _ = cache.read(layer, slots_T)
    return int((keys_TGK[:, 0, 0] * (values_TGK[:, 0, 0] + 1)).sum())


def toy_engine(options: EngineOptions | None = None, model: ToyModel | None = None) -> Engine:
    """A small engine over the toy."""
    options = options or EngineOptions(num_kv_blocks=32, block_size=4, max_batch_tokens=16, max_running=4)
    return Engine(model or ToyModel(), TOY_CONFIG, options, model_revision="toy")
