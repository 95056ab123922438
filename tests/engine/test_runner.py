"""From chunks to one ragged batch."""

import pytest
import torch

from gemline.engine.blocks import BlockTable
from gemline.engine.params import SamplingParams
from gemline.engine.requests import EngineRequest
from gemline.engine.runner import collect
from gemline.engine.scheduler import Chunk
from gemline.engine.sequence import Sequence


def sequence(seq_id: int, num_tokens: int, global_blocks: list[int], local_blocks: list[int]) -> Sequence:
    token_ids = tuple(range(seq_id * 100, seq_id * 100 + num_tokens))
    made = Sequence.begin(EngineRequest(seq_id, token_ids, num_tokens, SamplingParams(max_tokens=9)), seq_id, 4)
    fill(made.global_table, global_blocks)
    fill(made.local_table, local_blocks)
    return made


def fill(table: BlockTable, block_ids: list[int]) -> None:
    for block_id in block_ids:
        table.append(block_id)


def test_chunks_lie_one_after_the_other_with_their_slots_and_tables() -> None:
    decoding = sequence(1, 10, [5, 6, 7], [1, 2, 3])
    decoding.local_table.release_before(7)
    prefilling = sequence(2, 9, [8], [9])
    batch = collect([Chunk(1, 9, 10), Chunk(2, 1, 4)], {1: decoding, 2: prefilling}, block_size=4)
    assert batch.token_ids_T.tolist() == [109, 201, 202, 203]
    assert batch.positions_T.tolist() == [9, 1, 2, 3]
    assert batch.global_slots_T.tolist() == [29, 33, 34, 35]
    assert batch.local_slots_T.tolist() == [13, 37, 38, 39]
    assert batch.global_table_BP.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.local_table_BP.tolist() == [[0, 2, 3], [9, 0, 0]]
    assert batch.query_start.tolist() == [0, 1, 4]
    assert batch.context_len.tolist() == [10, 4]
    assert batch.sample_rows.tolist() == [0]


def test_tensors_keep_their_values_when_the_tables_grow() -> None:
    decoding = sequence(1, 3, [5], [6])
    batch = collect([Chunk(1, 2, 3)], {1: decoding}, block_size=4)
    fill(decoding.global_table, list(range(1000)))
    decoding.global_table.release_all()
    assert batch.global_table_BP.tolist() == [[5]]
    assert batch.token_ids_T.dtype == batch.local_table_BP.dtype == batch.sample_rows.dtype == torch.int64


@pytest.mark.parametrize("chunk", [Chunk(1, 3, 10), Chunk(1, 9, 13)])
def test_a_position_without_a_block_is_refused(chunk: Chunk) -> None:
    """It would be written to a block that is another's."""
    decoding = sequence(1, 14, [5, 6, 7], [1, 2, 3])
    decoding.local_table.release_before(7)
    with pytest.raises(IndexError, match=rf"sequence 1: positions \[{chunk.start}, {chunk.stop}\) are not all held"):
        collect([chunk], {1: decoding}, block_size=4)
