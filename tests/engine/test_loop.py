"""The engine's thread: what is called from outside happens between steps, and nothing stops the loop."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import torch

from gemline.engine.batch import Batch, Score
from gemline.engine.engine import Engine, EngineOptions, EngineRequest
from gemline.engine.events import StepResult
from gemline.engine.kv_cache import KvCache
from gemline.engine.loop import EngineThread
from gemline.engine.toy import ToyModel, toy_answer, toy_engine
from gemline.errors import CheckpointError, ConfigurationError, Unavailable

MakeRequest = Callable[..., EngineRequest]
SMALL = EngineOptions(num_kv_blocks=16, block_size=4, max_batch_tokens=8, max_running=4)


class Steps:
    """What an engine's thread told, and a way to wait until it told enough."""

    def __init__(self) -> None:
        self.results: list[StepResult] = []
        self._news = threading.Condition()

    def __call__(self, result: StepResult) -> None:
        with self._news:
            self.results.append(result)
            self._news.notify_all()

    def tokens(self, seq_id: int) -> list[int]:
        return [event.token_id for result in self.results for event in result.tokens if event.seq_id == seq_id]

    def codes(self, seq_id: int) -> list[str]:
        return [event.code for result in self.results for event in result.failures if event.seq_id == seq_id]

    async def until(self, happened: Callable[[], bool]) -> None:
        def wait() -> bool:
            with self._news:
                return self._news.wait_for(happened, timeout=20)

        assert await asyncio.to_thread(wait)


@asynccontextmanager
async def serving(
    load: Callable[[], Engine], steps: Callable[[StepResult], None], num_threads: int | None = None
) -> AsyncIterator[EngineThread]:
    thread = EngineThread(load, steps, num_threads)
    thread.start()
    await thread.ready()
    yield thread
    assert thread.stop(20)
    assert not thread.is_alive


async def test_submitted_sequences_are_answered(greedy: MakeRequest) -> None:
    steps = Steps()
    async with serving(toy_engine, steps) as thread:
        for seq_id in range(6):
            thread.submit(greedy(seq_id, [seq_id]))
        await steps.until(lambda: all(len(steps.tokens(seq_id)) == 8 for seq_id in range(6)))
    assert all(steps.tokens(seq_id) == toy_answer([seq_id], 8) for seq_id in range(6))


async def test_what_is_wrong_with_a_checkpoint_reaches_whoever_waits() -> None:
    def load() -> Engine:
        raise CheckpointError("config.json is odd")

    thread = EngineThread(load, Steps())
    thread.start()
    with pytest.raises(CheckpointError, match=r"config\.json is odd"):
        await thread.ready()
    with pytest.raises(Unavailable):
        await asyncio.wrap_future(thread.call(lambda engine: engine.num_running))
    assert thread.stop(20)


async def test_what_is_lost_while_it_loads_is_told_at_once_though_the_thread_stands_there_for_good() -> None:
    """As among ranks that wait for each other while they load."""
    entered, gate = threading.Event(), threading.Event()

    def stand() -> Engine:
        entered.set()
        gate.wait(60)
        return toy_engine()

    thread = EngineThread(stand, Steps())
    thread.start()
    assert await asyncio.to_thread(entered.wait, 20)
    thread.lose("rank 1 ended: killed")
    with pytest.raises(ConfigurationError, match=r"^rank 1 ended: killed$"):
        await asyncio.wait_for(thread.ready(), 20)
    gate.set()
    await asyncio.to_thread(thread._thread.join, 20)
    assert not thread._thread.is_alive()


async def test_a_refused_request_fails_and_the_others_go_on(greedy: MakeRequest) -> None:
    steps = Steps()
    async with serving(lambda: toy_engine(replace(SMALL, max_waiting=1, max_running=1)), steps) as thread:
        thread.submit(greedy(1, [1] * 60, max_tokens=40))
        await steps.until(lambda: steps.codes(1) == ["context_length_exceeded"])
        gate = threading.Event()
        thread.call(lambda engine: gate.wait(20))
        for seq_id in (2, 2, 3):
            thread.submit(greedy(seq_id, [5]))
        gate.set()
        await steps.until(lambda: len(steps.tokens(2)) == 8 and len(steps.codes(2) + steps.codes(3)) == 2)
    assert steps.codes(3) == ["overloaded"]


async def test_a_cancelled_sequence_gives_nothing_after_the_step_that_is_going_on(greedy: MakeRequest) -> None:
    steps = Steps()
    async with serving(toy_engine, steps) as thread:
        thread.submit(greedy(1, [1], max_tokens=60))
        await steps.until(lambda: len(steps.tokens(1)) > 3)
        thread.cancel(1)
        free = await asyncio.wrap_future(thread.call(lambda engine: engine.num_blocks == engine.num_free_blocks))
        num_tokens = len(steps.tokens(1))
        assert free
        await asyncio.sleep(0.05)
        assert len(steps.tokens(1)) == num_tokens


async def test_a_call_runs_in_the_engines_thread_and_its_error_comes_back() -> None:
    async with serving(toy_engine, Steps()) as thread:
        name = await asyncio.wrap_future(thread.call(lambda engine: threading.current_thread().name))
        assert name == "engine"
        with pytest.raises(LookupError, match="sequence 4 is not importing"):
            await asyncio.wrap_future(thread.call(lambda engine: engine.abandon_import(4)))
        assert thread.is_alive


async def test_torch_gets_its_threads_in_the_engines_thread_before_it_loads() -> None:
    while_loading: list[int] = []

    def load() -> Engine:
        while_loading.append(torch.get_num_threads())
        return toy_engine()

    for num_threads in (1, 3):
        async with serving(load, Steps(), num_threads) as thread:
            assert await asyncio.wrap_future(thread.call(lambda engine: torch.get_num_threads())) == num_threads
    assert while_loading == [1, 3]


async def test_an_idle_engine_sleeps(greedy: MakeRequest) -> None:
    steps = Steps()
    async with serving(toy_engine, steps) as thread:
        thread.submit(greedy(1, [1], max_tokens=2))
        await steps.until(lambda: len(steps.tokens(1)) == 2)
        await asyncio.wrap_future(thread.call(lambda engine: None))
        num_steps = len(steps.results)
        start_s = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - start_s < 0.15
        assert len(steps.results) == num_steps
        assert thread.last_step_age_s == 0.0


async def test_an_engine_that_waits_for_blocks_sleeps_until_some_are_freed(greedy: MakeRequest) -> None:
    steps = Steps()
    async with serving(lambda: toy_engine(replace(SMALL, max_batch_tokens=64)), steps) as thread:
        thread.submit(greedy(1, range(60), max_tokens=1, hold=True))
        await steps.until(lambda: len(steps.tokens(1)) == 1)
        thread.submit(greedy(2, range(20), max_tokens=3))
        await steps.until(lambda: steps.results[-1].num_waiting == 1)
        num_steps = len(steps.results)
        await asyncio.sleep(0.1)
        assert len(steps.results) == num_steps
        thread.cancel(1)
        await steps.until(lambda: steps.tokens(2) == toy_answer(range(20), 3))


async def test_a_step_that_takes_long_shows(greedy: MakeRequest) -> None:
    gate = threading.Event()
    async with serving(toy_engine, Steps()) as thread:
        future = thread.call(lambda engine: gate.wait(20))
        await asyncio.sleep(0.05)
        assert 0.0 < thread.last_step_age_s < 20.0
        gate.set()
        await asyncio.wrap_future(future)


async def test_a_broken_batch_does_not_stop_the_loop(greedy: MakeRequest) -> None:
    steps = Steps()
    async with serving(lambda: toy_engine(SMALL, ToyModel(broken_token_id=50)), steps) as thread:
        thread.submit(greedy(1, [50]))
        await steps.until(lambda: steps.codes(1) == ["internal_error"])
        thread.submit(greedy(2, [5]))
        await steps.until(lambda: steps.tokens(2) == toy_answer([5], 8))


class LostDevice(ToyModel):
    """What torch raises once a GPU has failed a process, whatever is asked of it."""

    def forward(self, batch: Batch, cache: KvCache, score: Score | None = None) -> torch.Tensor:
        raise torch.AcceleratorError("an illegal memory access was encountered")


async def test_when_the_device_is_lost_everybody_is_told_and_the_thread_ends(greedy: MakeRequest) -> None:
    steps = Steps()
    thread = EngineThread(lambda: toy_engine(SMALL, LostDevice()), steps)
    thread.start()
    await thread.ready()
    thread.submit(greedy(1, [5]))
    await steps.until(lambda: steps.codes(1) == ["worker_lost"])
    await asyncio.to_thread(thread._thread.join, 20)
    assert not thread.is_alive
    with pytest.raises(Unavailable):
        thread.submit(greedy(2, [5]))


async def test_a_listener_that_fails_does_not_stop_the_loop(greedy: MakeRequest) -> None:
    steps = Steps()

    def listen(result: StepResult) -> None:
        steps(result)
        raise RuntimeError("the listener broke")

    async with serving(toy_engine, listen) as thread:
        thread.submit(greedy(1, [5]))
        await steps.until(lambda: len(steps.tokens(1)) == 8)


async def test_what_is_asked_of_a_stopped_engine_is_refused(greedy: MakeRequest) -> None:
    thread = EngineThread(toy_engine, Steps())
    thread.start()
    await thread.ready()
    gate = threading.Event()
    thread.call(lambda engine: gate.wait(20))
    late = thread.call(lambda engine: 1)
    stopping = asyncio.create_task(asyncio.to_thread(thread.stop, 20))
    await asyncio.sleep(0.05)
    gate.set()
    assert await stopping
    with pytest.raises(Unavailable):
        late.result(20)
    with pytest.raises(Unavailable):
        thread.call(lambda engine: 1).result(20)
    with pytest.raises(Unavailable):
        thread.submit(greedy(1, [1]))
    thread.cancel(1)
    assert thread.stop()


async def test_a_thread_that_was_never_started_stops() -> None:
    thread = EngineThread(toy_engine, Steps())
    assert thread.stop()
    with pytest.raises(Unavailable):
        thread.call(lambda engine: 1).result(1)


async def test_a_thread_that_stands_in_a_step_for_good_is_lost_at_once_and_not_waited_for_long() -> None:
    """As on a GPU that waits for a rank which is gone."""
    entered, gate = threading.Event(), threading.Event()

    def stand(engine: Engine) -> None:
        entered.set()
        gate.wait(60)

    thread = EngineThread(toy_engine, Steps())
    thread.start()
    await thread.ready()
    future = thread.call(stand)
    assert await asyncio.to_thread(entered.wait, 20)
    assert thread.is_alive
    thread.lose("rank 1 ended: killed")
    assert not thread.is_alive
    begun_s = time.monotonic()
    assert not await asyncio.to_thread(thread.stop, 50)
    assert time.monotonic() - begun_s < 25
    gate.set()
    await asyncio.wrap_future(future)
