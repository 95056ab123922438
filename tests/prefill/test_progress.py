"""How far a prefill has come: the latest state, whoever is slow."""

import asyncio

import pytest

from gemline.engine.events import FailureEvent, PrefillEvent, StepResult, TokenEvent
from gemline.prefill.progress import ProgressTable, Reached


def step(*num_computed: int, first: int | None = None) -> StepResult:
    return StepResult(
        prefills=tuple(PrefillEvent(1, num) for num in num_computed),
        tokens=() if first is None else (TokenEvent(1, first),),
        num_running=1,
    )


async def test_a_slow_stream_sees_the_latest_chunk_only() -> None:
    table = ProgressTable()
    progress = table.begin(1)
    table.deliver(step(10))
    table.deliver(step(20))

    assert await progress.next() == Reached(20, None)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(progress.next(), 0.01)


async def test_a_preemption_takes_nothing_back() -> None:
    table = ProgressTable()
    progress = table.begin(1)
    table.deliver(step(20))
    table.deliver(step(5))

    assert await progress.next() == Reached(20, None)


async def test_the_first_token_comes_with_the_last_chunk() -> None:
    table = ProgressTable()
    progress = table.begin(1)
    table.deliver(step(30, first=7))

    assert await progress.next() == Reached(30, TokenEvent(1, 7))


async def test_a_failure_is_the_last_word() -> None:
    table = ProgressTable()
    progress = table.begin(1)
    failure = FailureEvent(1, "internal_error", "no")
    table.deliver(StepResult(failures=(failure,)))

    assert await progress.next() == failure


async def test_what_comes_for_an_ended_stream_is_dropped() -> None:
    table = ProgressTable()
    table.begin(1)
    assert table.load == (0, 1)
    table.end(1)

    table.deliver(step(10, first=7))

    assert table.load == (0, 0)
    assert table.idle.is_set()
