"""A decode worker dies, freezes or drains under a stream, and the client sees a gap at most."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.decode_workers import decode_workers, holder, num_requests, start_colocated, wait_for_workers
from support.metrics import metric
from support.sse import Told, complete
from support.stack import Running

from gemline.cluster.records import WorkerRecord

pytestmark = pytest.mark.slow

NUM_TOKENS = 200  # so many that the first of them is here well before the last is computed, on a busy machine too
# More than a prefill takes between two looks at the metrics, so that it is found before its first token.
LONG = "The river went on and on, and so did the road beside it. " * 70
GREEDY = {"temperature": 0.0}
SEEDED = {"temperature": 1.0, "seed": 17, "top_p": 0.95, "presence_penalty": 0.3}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two decode workers that prefill for themselves, in a precision in which recomputing changes nothing."""
    running = start_colocated(tmp_path_factory.mktemp("going-on"), num_decode=2)
    yield running
    running.stop()


@pytest.fixture
def workers(stack: Running) -> list[WorkerRecord]:
    """Both of them."""
    return wait_for_workers(stack, 2)


def once_after(number: int, act: Callable[[], None]) -> Callable[[int], None]:
    """What to do after that event."""
    return lambda event: act() if event == number else None


def options(prompt: str, sampling: dict[str, Any], max_tokens: int = NUM_TOKENS) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "logprobs": 0} | sampling


def assert_equal(got: Told, expected: Told) -> None:
    assert got.error is None
    assert got.answer == expected.answer
    assert [token for token, _ in got.token_logprobs] == [token for token, _ in expected.token_logprobs]
    for (_, ours), (_, theirs) in zip(got.token_logprobs, expected.token_logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize(
    ("after", "sampling"),
    [
        (1, SEEDED),
        (7, GREEDY),
        (7, SEEDED),
        (NUM_TOKENS - 1, GREEDY),
        (NUM_TOKENS, SEEDED),
    ],
    ids=["1 seeded", "7 greedy", "7 seeded", "last but one greedy", "last seeded"],
)
def test_a_stream_whose_worker_is_killed_goes_on(
    stack: Running, workers: list[WorkerRecord], after: int, sampling: dict[str, Any]
) -> None:
    asked = options("Once upon a time", sampling)
    expected = complete(stack, **asked)
    moved_before = metric(stack, "gateway", "gemline_gateway_migrations_total", reason="lost")

    def kill() -> None:
        for worker in workers:
            if num_requests(worker) or after == NUM_TOKENS:
                os.kill(worker.pid, signal.SIGKILL)
                return

    got = complete(stack, once_after(after, kill), **asked)
    assert_equal(got, expected)
    print(f"killed after {after} events: longest gap {got.longest_gap_s:.2f} s, {expected.longest_gap_s:.2f} s before")
    if after <= 7:
        assert metric(stack, "gateway", "gemline_gateway_migrations_total", reason="lost") == moved_before + 1


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_request_whose_worker_is_killed_before_the_first_token_is_answered(
    stack: Running, workers: list[WorkerRecord], sampling: dict[str, Any]
) -> None:
    asked = options(LONG + str(sampling), sampling)
    got: list[Told] = []
    reader = threading.Thread(target=lambda: got.append(complete(stack, **asked)))
    reader.start()
    os.kill(holder(workers).pid, signal.SIGKILL)
    reader.join()
    assert_equal(got[0], complete(stack, **asked))


def test_a_frozen_worker_is_left_within_seconds_and_heard_no_more(stack: Running, workers: list[WorkerRecord]) -> None:
    asked = options("Once upon a time", SEEDED, max_tokens=400)
    expected = complete(stack, **asked)
    frozen: list[int] = []

    def freeze_then_thaw(event: int) -> None:
        if event == 20:
            frozen.append(holder(workers).pid)
            os.kill(frozen[0], signal.SIGSTOP)
        elif event == 100:  # by now they come from the other one
            os.kill(frozen[0], signal.SIGCONT)

    try:
        got = complete(stack, freeze_then_thaw, **asked)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    assert_equal(got, expected)
    print(f"frozen: longest gap {got.longest_gap_s:.2f} s")
    assert got.longest_gap_s < 60
    assert metric(stack, "gateway", "gemline_gateway_migrations_total", reason="frozen") == 1
    assert frozen[0] in [worker.pid for worker in wait_for_workers(stack, 2)]
    short = options("Once upon a time", SEEDED)
    first, *others = (complete(stack, **short) for _ in range(4))  # by the thawed one too
    for again in others:
        assert_equal(again, first)


@pytest.mark.parametrize("num_signals", [1, 2], ids=["finishing", "migrating"])
def test_a_worker_that_is_told_to_go_under_load_fails_nobody(
    stack: Running, workers: list[WorkerRecord], num_signals: int
) -> None:
    """The first signal begins the drain, a second one ends it: what still runs goes on at the other worker."""
    prompts = [f"Once upon a time there were {i} of them" for i in range(4)]
    expected = {prompt: complete(stack, **options(prompt, SEEDED)) for prompt in prompts}
    moved_before = metric(stack, "gateway", "gemline_gateway_migrations_total", reason="drained")
    going = threading.Event()

    def ask_on(prompt: str) -> list[Told]:
        told: list[Told] = []
        while not told or not going.is_set():
            told.append(complete(stack, **options(prompt, SEEDED)))
        return told

    with ThreadPoolExecutor(len(prompts)) as pool:
        asking = {prompt: pool.submit(ask_on, prompt) for prompt in prompts}
        leaving = holder(workers)
        for _ in range(num_signals):
            os.kill(leaving.pid, signal.SIGTERM)
            time.sleep(0.2)
        time.sleep(2)
        going.set()
        answers = {prompt: future.result() for prompt, future in asking.items()}
    for prompt, told in answers.items():
        for got in told:
            assert_equal(got, expected[prompt])
    if num_signals == 2:
        assert metric(stack, "gateway", "gemline_gateway_migrations_total", reason="drained") > moved_before
    assert leaving.pid not in [worker.pid for worker in decode_workers(stack)]


def test_without_any_decode_worker_a_stream_ends_with_an_error_and_a_new_request_is_refused(
    stack: Running, workers: list[WorkerRecord]
) -> None:

    def kill_all() -> None:
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)

    os.kill(stack.process.pid, signal.SIGSTOP)  # it would start them again
    try:
        begun = complete(stack, once_after(20, kill_all), **options("Once upon a time", GREEDY, max_tokens=400))
        assert begun.error is not None
        assert begun.error["code"] == "worker_lost"
        assert begun.text
        refused = complete(stack, **options("Once upon a time", GREEDY))
        assert refused.error is not None
        assert (refused.error["status"], refused.error["code"]) == (503, "unavailable")
        billed = metric(stack, "gateway", "gemline_gateway_completion_tokens_total")
    finally:
        os.kill(stack.process.pid, signal.SIGCONT)
    assert billed > 0
    wait_for_workers(stack, 2)
    assert complete(stack, **options("Once upon a time", GREEDY)).error is None
