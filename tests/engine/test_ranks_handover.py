"""Keys and values leave a model that is divided one way and come to one that is divided another way."""

import struct
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from support.divided import CONFIG, OPTIONS, divided_engine, whole_engine
from support.thread_ranks import ThreadRanks, together

from gemline.engine.divided_cache import CacheShare, DividedCache
from gemline.engine.engine import Engine
from gemline.engine.handover import Positions
from gemline.engine.kv_cache import KvCache
from gemline.engine.kv_form import FLOAT8
from gemline.engine.params import SamplingParams
from gemline.engine.part import Part
from gemline.engine.ranks import Leader, RanksBroken
from gemline.engine.requests import EngineRequest
from gemline_kernels.scales import Scales

PROMPT = tuple(7 * at % 330 for at in range(37))  # four windows
REQUEST = EngineRequest(1, PROMPT, len(PROMPT), SamplingParams(12, temperature=0.0))


class Frame(NamedTuple):
    layer: int
    at: Positions
    scales: Scales
    payload: bytes


def prefill(engine: Engine, dtype: str = "", heads: range | None = None) -> tuple[int, list[Frame]]:
    """The first token, and what leaves in two frames a layer."""
    engine.add(replace(REQUEST, hold=True))
    tokens = [event.token_id for _ in range(4) for event in engine.step().tokens]
    form = engine.kv_form(dtype, heads)
    frames = []
    for layer, (start, stop) in enumerate(engine.kv_ranges(len(PROMPT))):
        middle = (start + stop) // 2
        for at in (Positions(start, middle), Positions(middle, stop)):
            payload = bytearray((at.stop - at.start) * form.token_bytes)
            scales = engine.handover.export_kv(1, layer, at, form, memoryview(payload))
            frames.append(Frame(layer, at, scales, bytes(payload)))
    engine.cancel(1)
    assert engine.num_free_blocks == engine.num_blocks
    return tokens[0], frames


def decode(engine: Engine, token_id: int, frames: list[Frame], dtype: str = "") -> list[int]:
    assert engine.reserve(REQUEST)
    for layer, at, scales, payload in frames:
        engine.handover.import_kv(1, layer, at, engine.kv_form(dtype), scales, payload)
    answer = [engine.finish_import(1, token_id).token_id]
    while engine.has_work:
        answer += [event.token_id for event in engine.step().tokens]
    return answer


@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize(("there", "here"), [(2, 1), (1, 2), (4, 2), (2, 4), (2, 2)])
def test_prefill_divided_one_way_feeds_decode_divided_another(there: int, here: int, groups: int) -> None:
    """Of 2 KV heads 4 ranks have copies; of 8 each has some."""
    config = replace(CONFIG, num_key_value_heads=groups)
    whole = whole_engine(config)
    expected = decode(whole_engine(config), *prefill(whole))
    sent = divided_engine(there, config, prefill) if there > 1 else prefill(whole_engine(config))
    if here == 1:
        assert decode(whole_engine(config), *sent) == expected
    else:
        assert divided_engine(here, config, lambda engine: decode(engine, *sent)) == expected


@pytest.mark.parametrize("wire", ["", "bfloat16"])
@pytest.mark.parametrize(("there", "here"), [(2, 1), (1, 2), (4, 2)])
def test_fp8_caches_feed_each_other_however_they_are_divided(there: int, here: int, wire: str) -> None:
    """Ranks have the scales of the whole, so bytes go as they are; bfloat16 on the wire holds all that fp8 does."""
    options = replace(OPTIONS, kv_dtype="fp8")
    expected = decode(whole_engine(CONFIG, options), *prefill(whole_engine(CONFIG, options)))

    def send(engine: Engine) -> tuple[int, list[Frame]]:
        return prefill(engine, wire)

    def receive(engine: Engine) -> list[int]:
        return decode(engine, *sent, dtype=wire)

    sent = divided_engine(there, CONFIG, send, options) if there > 1 else send(whole_engine(CONFIG, options))
    if here > 1:
        assert divided_engine(here, CONFIG, receive, options) == expected
    else:
        assert receive(whole_engine(CONFIG, options)) == expected


@pytest.mark.parametrize("heads", [range(8), range(1, 4), range(5, 6)])
@pytest.mark.parametrize("dtype", ["", "bfloat16", FLOAT8])
def test_frames_of_ranks_are_those_of_the_whole(heads: range, dtype: str) -> None:
    """In every form: a float8 frame has one scale, whoever has the largest value."""
    config = replace(CONFIG, num_key_value_heads=8)
    _, expected = prefill(whole_engine(config), dtype, heads)
    _, found = divided_engine(4, config, lambda engine: prefill(engine, dtype, heads))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine[:2] == theirs[:2]
        assert mine.scales == pytest.approx(theirs.scales, rel=1e-4)
        if not dtype:
            size = len(theirs.payload) // 4
            numbers, known = (struct.unpack(f"<{size}f", it.payload) for it in (mine, theirs))
            assert numbers == pytest.approx(known, abs=1e-4)
        else:
            same = sum(one == other for one, other in zip(mine.payload, theirs.payload, strict=True))
            assert same > 0.98 * len(theirs.payload)  # sums of ranks are rounded in another order


def test_heads_that_do_not_come_stay_as_they_are() -> None:
    config = replace(CONFIG, num_key_value_heads=8)

    def run(ranks: ThreadRanks) -> torch.Tensor:
        part = Part(config, ranks.rank, ranks.size)
        own = KvCache(part.own_config, 3, 3, 4, torch.float32)
        for pool in own.pools:
            pool.keys.fill_(1.0)
            pool.values.fill_(2.0)
        if ranks.rank:
            CacheShare(own, part, ranks).receive(ranks.hear())
        else:
            numbers_2TGK = torch.full((2, 2, 3, config.head_dim), 5.0)
            data = numbers_2TGK.view(torch.uint8).numpy()
            DividedCache(own, part, Leader(ranks)).scatter(1, torch.tensor([3, 9]), range(3, 6), data)
        return torch.stack(own.read(1, torch.arange(12))[:2])

    found_2TGK = torch.cat(together(4, run), dim=2)
    expected_2TGK = torch.tensor([1.0, 2.0])[:, None, None, None].expand(found_2TGK.shape).clone()
    expected_2TGK[:, [3, 9], 3:6] = 5.0
    assert torch.equal(found_2TGK, expected_2TGK)


def test_a_move_that_fails_on_rank_0_breaks_the_group_for_good() -> None:
    """The others are in the midst of it: what rank 0 said next would meet them there."""

    def run(ranks: ThreadRanks) -> None:
        part = Part(CONFIG, ranks.rank, ranks.size)
        own = KvCache(part.own_config, 3, 3, 4, torch.float32)
        if ranks.rank:
            CacheShare(own, part, ranks).give(ranks.hear())
            return
        cache, slots = DividedCache(own, part, Leader(ranks)), torch.tensor([1, 2])
        with pytest.raises(RanksBroken, match="rank 0 failed"):
            cache.gather(0, slots, range(2), torch.empty(2, 2, 2, 5))  # no room for heads of 16
        with pytest.raises(RanksBroken, match="rank 0 failed"):
            cache.gather(0, slots, range(2), torch.empty(2, 2, 2, CONFIG.head_dim))

    together(2, run)
