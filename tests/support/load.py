"""Clients that ask the same few things over and over, each answer held to what it was before there was a fault."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from support.sse import Told, complete
from support.stack import Running

SEEDED: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True, "temperature": 1.0, "seed": 17}


@contextmanager
def asking(running: Running, num_clients: int = 4, **options: Any) -> Iterator[Callable[[], int]]:
    """Inside, so many clients ask on; in the end none of them has met an error or another answer than before.

    Gives how many answers there have been so far.
    """
    asked = [SEEDED | {"prompt": f"Once upon a time there were {i} of them"} | options for i in range(num_clients)]
    expected = [complete(running, **each).answer for each in asked]
    told: list[list[Told]] = [[] for _ in asked]
    enough = threading.Event()

    def ask_on(number: int) -> None:
        while not enough.is_set():
            told[number].append(complete(running, **asked[number]))

    with ThreadPoolExecutor(num_clients) as pool:
        clients: list[Future[None]] = [pool.submit(ask_on, i) for i in range(num_clients)]
        try:
            yield lambda: sum(map(len, told))
        finally:
            enough.set()
        for client in clients:
            client.result()
    for answers, right in zip(told, expected, strict=True):
        assert answers
        for answer in answers:
            assert answer.error is None
            assert answer.answer == right


def wait_for_more(num_answers: Callable[[], int], num: int, within_s: float = 60.0) -> None:
    """Until so many more answers have come."""
    limit_s, goal = time.monotonic() + within_s, num_answers() + num
    while num_answers() < goal:
        assert time.monotonic() < limit_s, "the clients get no answers"
        time.sleep(0.02)
