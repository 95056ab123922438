"""The toy's rows: what a device would compute ahead, computed when it is launched. For tests of what looks ahead."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from gemline.engine.batch import Batch
from gemline.engine.kv_cache import KvCache
from gemline.engine.params import SamplingParams
from gemline.engine.sampling import SampleRow, sample
from gemline_kernels.decoding import Blocks, Choice, Launched, Row


class _Forward(Protocol):
    def forward(self, batch: Batch, cache: KvCache) -> torch.Tensor: ...


class ToyDecoder:
    """Each row knows what it was told and what it made of it, and looks at no sequence."""

    def __init__(self, model: _Forward, cache: KvCache, num_rows: int) -> None:
        self.num_rows = num_rows
        self._model = model
        self._cache = cache
        self._rows: dict[int, Row] = {}
        self._tables: dict[int, tuple[list[int], list[int]]] = {}
        self.num_put = 0  # sequences that were told of
        self.launched: list[int] = []  # the rows of each step

    def put(self, rows: Mapping[int, Row]) -> None:
        """As `Decoder` says."""
        self._rows.update(rows)
        self.num_put += len(rows)

    def set_blocks(self, tables: Mapping[int, Blocks]) -> None:
        """As `Decoder` says."""
        self._tables.update({row: (list(table.of_global), list(table.of_local)) for row, table in tables.items()})

    def clear(self, rows: Sequence[int]) -> None:
        """As `Decoder` says."""
        for row in rows:
            self._rows.pop(row, None)

    def launch(self, num_rows: int, *, truncates: bool) -> Launched:
        """As `Decoder` says. Raises ValueError for a row that would be cut off or drawn otherwise than told."""
        if any(row >= num_rows for row in self._rows):
            raise ValueError(f"a step of {num_rows} rows leaves out one of {sorted(self._rows)}")
        if not truncates and any(row.choice.top_k or row.choice.top_p < 1.0 for row in self._rows.values()):
            raise ValueError("a row truncates and the step does not")
        self.launched.append(num_rows)
        token_ids = [self._step(row) if row in self._rows else None for row in range(num_rows)]
        return lambda: token_ids

    def choose(self, logits_BV: torch.Tensor, choices: Sequence[Choice]) -> list[int | None]:
        """As `Decoder` says."""
        sampled = sample(logits_BV, [SampleRow(_params(choice), choice.position) for choice in choices])
        return [None if one is None else one.token_id for one in sampled]

    def _step(self, row: int) -> int | None:
        token_id, choice = self._rows[row]
        position = choice.position - 1
        slots = [
            table[position // self._cache.block_size] * self._cache.block_size + position % self._cache.block_size
            for table in self._tables[row]
        ]
        batch = Batch(
            token_ids_T=torch.tensor([token_id]),
            positions_T=torch.tensor([position]),
            global_slots_T=torch.tensor(slots[:1]),
            local_slots_T=torch.tensor(slots[1:]),
            global_table_BP=torch.tensor([self._tables[row][0]]),
            local_table_BP=torch.tensor([self._tables[row][1]]),
            query_start=torch.tensor([0, 1]),
            context_len=torch.tensor([choice.position]),
            sample_rows=torch.tensor([0]),
        )
        (answer,) = self.choose(self._model.forward(batch, self._cache), [choice])
        self._rows[row] = Row(answer or 0, replace(choice, position=choice.position + 1))
        return answer


def _params(choice: Choice) -> SamplingParams:
    return SamplingParams(
        max_tokens=1,
        temperature=choice.temperature,
        top_k=choice.top_k,
        top_p=choice.top_p,
        min_p=choice.min_p,
        seed=choice.seed,
    )
