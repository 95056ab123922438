"""An answer that changes its worker is, to the letter, the one that stays: two real engines behind one gateway."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.eventually import eventually
from support.in_process import MODEL, TENANT, InProcess, host

from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.engine.options import EngineOptions
from gemline.errors import Unavailable
from gemline.gateway.answer import Answer
from gemline.gateway.core import new_request_id
from gemline.gateway.requests import GenerationRequest, Piece, PositionLogprobs, Prompt, SamplingOptions

PROMPT = Prompt(text="Once upon a time there was a stream")
NUM_TOKENS = 48
SEEDED: dict[str, Any] = {"temperature": 1.0, "seed": 11}

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": SEEDED,
    "cut down": {**SEEDED, "top_p": 0.9, "top_k": 50, "min_p": 0.001},
    "penalized": {**SEEDED, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    "with logprobs": {**SEEDED, "logprobs": 3},
}


class Pair(NamedTuple):
    """A gateway and the two decode workers that it may use."""

    platform: InProcess
    workers: tuple[DecodeWorker, DecodeWorker]

    def leave(self) -> bool:
        """Whoever has a request lets go of it; whether anybody had one."""
        busy = [worker for worker in self.workers if sum(worker.load())]
        for worker in busy:
            worker._requests.close_streams(Unavailable("the worker is shutting down"))
        return bool(busy)


class Whole(NamedTuple):
    """All of one answer that a user can see."""

    text: str
    logprobs: list[PositionLogprobs]
    finish_reason: str | None
    completion_tokens: int


@pytest.fixture
async def pair(platform: InProcess, redis_url: str, tiny_checkpoint: Path) -> AsyncIterator[Pair]:
    engine = EngineOptions(num_kv_blocks=256, num_threads=1)
    second = DecodeWorker(DecodeOptions(tiny_checkpoint, MODEL, engine, prefill="never"))
    second_host = host(second, redis_url)
    await second_host.start()
    await eventually(lambda: len(platform.gateway._links._open_links(second.card, ())) == 2)
    yield Pair(platform, (platform.decode_worker, second))
    await second_host.stop()


async def begin(pair: Pair, **options: Any) -> Answer:
    sampling = SamplingOptions(**({"max_tokens": NUM_TOKENS, "ignore_eos": True} | options))
    return await pair.platform.gateway.generate(TENANT, GenerationRequest(new_request_id(), MODEL, PROMPT, sampling))


async def read(pair: Pair, leave_after: tuple[int, ...] = (), *, must_leave: bool = False, **options: Any) -> Whole:
    """`leave_after`: after how many pieces the worker that has the request lets go of it."""
    pieces: list[Piece] = []
    num_left = 0
    answer = await begin(pair, **options)
    if 0 in leave_after:
        await eventually(lambda: any(sum(worker.load()) for worker in pair.workers))
        num_left += pair.leave()
    async for piece in answer:
        pieces.append(piece)
        if len(pieces) in leave_after:
            num_left += pair.leave()
    assert num_left or not must_leave
    usage = pieces[-1].usage
    assert usage is not None
    assert usage.cached_tokens <= usage.prompt_tokens
    logprobs = [position for piece in pieces for position in piece.logprobs]
    return Whole("".join(piece.text for piece in pieces), logprobs, pieces[-1].finish_reason, usage.completion_tokens)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("leave_after", [(0,), (1,), (7,), (2, 9, 20)], ids=str)
async def test_an_answer_is_the_same_wherever_its_tokens_come_from(
    pair: Pair, options: dict[str, Any], leave_after: tuple[int, ...]
) -> None:
    expected = await read(pair, **options)
    got = await read(pair, leave_after, must_leave=True, **options)
    assert got._replace(logprobs=[]) == expected._replace(logprobs=[])
    assert got.completion_tokens == NUM_TOKENS
    assert [p.chosen.token_id for p in got.logprobs] == [p.chosen.token_id for p in expected.logprobs]
    assert len(got.logprobs) == (NUM_TOKENS if "logprobs" in options else 0)
    for ours, theirs in zip(got.logprobs, expected.logprobs, strict=True):
        assert ours.chosen.logprob == pytest.approx(theirs.chosen.logprob, abs=1e-3)
        assert [top.token_id for top in ours.top] == [top.token_id for top in theirs.top]


async def test_a_stop_string_is_found_across_the_seam(pair: Pair) -> None:
    whole = (await read(pair, **SEEDED)).text
    for start in range(4, 12):
        stop = whole[start : start + 6]
        expected = await read(pair, **SEEDED, stop=(stop,))
        assert expected.text == whole[: whole.index(stop)]
        for after in range(1, 4):
            assert await read(pair, (after,), **SEEDED, stop=(stop,)) == expected


async def test_a_stop_token_ends_the_answer_after_the_seam(pair: Pair) -> None:
    ids = [position.chosen.token_id for position in (await read(pair, **SEEDED, logprobs=0)).logprobs]
    end_id = ids[NUM_TOKENS // 2]
    expected = await read(pair, **SEEDED, stop_token_ids=(end_id,))
    assert expected.finish_reason == "stop"
    assert expected.completion_tokens == ids.index(end_id) + 1
    for after in (0, 1, 3):
        assert await read(pair, (after,), **SEEDED, stop_token_ids=(end_id,)) == expected
