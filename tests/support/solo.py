"""One sequence through a model without an engine. Knows no scheduler."""

from collections.abc import Sequence

import torch

from gemline.engine.batch import Batch
from gemline.engine.kv_cache import KvCache
from gemline.engine.model import Gemma2Model


class Solo:
    """A sequence in a cache of its own, where position p has slot p of both pools."""

    def __init__(self, model: Gemma2Model, capacity: int, block_size: int = 16) -> None:
        num_blocks = -(-capacity // block_size)
        self._model = model
        self._cache = KvCache(model.config, num_blocks, num_blocks, block_size, model.dtype, model.device)
        self._num_blocks = num_blocks
        self.num_computed = 0

    def forward(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Appends the tokens; logits_TV, float32, one row for each of them."""
        batch = Batch.of_one(torch.tensor(token_ids), self._num_blocks, self.num_computed)
        self.num_computed += len(token_ids)
        return self._model.forward(batch, self._cache)

    def generate(self, token_ids: Sequence[int], num_tokens: int) -> list[int]:
        """The likeliest token after the tokens, the likeliest after that, and so on."""
        generated: list[int] = []
        while len(generated) < num_tokens:
            generated.append(int(self.forward(generated[-1:] or token_ids)[-1].argmax()))
        return generated
