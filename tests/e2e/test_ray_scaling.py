"""Decode workers on Ray as load needs them: from one to three and back, and nobody notices."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.decode_workers import decode_workers, leases
from support.load import asking, wait_for_more
from support.stack import Running, start_stack

from gemline.cluster.records import Role

pytestmark = [pytest.mark.ray, pytest.mark.timing, pytest.mark.timeout(400)]

LIMIT_S = 120.0  # on a busy machine; a worker takes seconds to start


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Running]:
    """Workers with two places each, which four clients overfill."""
    size = ("--topology", "colocated", "--decode", "1-3", "--max-running", "2", "--kv-blocks", "512", "--threads", "1")
    pace = ("--scale-up-after", "1", "--scale-down-after", "4", "--itl-slo", "30", "--ttft-slo", "30")
    running = start_stack(tmp_path, "--runner", "ray", "--dtype", "float32", "--first-prompt", "", *size, *pace)
    yield running
    assert running.stop(signal.SIGTERM) == 0
    output = running.output.read_text()
    assert "stopping" in output
    assert "SIGTERM received" not in output  # by Ray's own handler


def wait_for(running: Running, num: int, *, exactly: bool = False) -> float:
    """Until so many decode workers take requests (or are known at all); how long it took."""
    begun_s = time.monotonic()
    while True:
        there = leases(running.ready["redis_url"], Role.DECODE) if exactly else decode_workers(running)
        if len(there) == num:
            return time.monotonic() - begun_s
        assert time.monotonic() - begun_s < LIMIT_S, f"{len(there)} decode workers, not {num}"
        time.sleep(0.2)


def test_decode_workers_come_under_load_and_go_after_it_with_every_answer_whole(stack: Running) -> None:
    with asking(stack, num_clients=5, max_tokens=120) as num_answers:
        grown_s = wait_for(stack, 3)
        print(f"1 -> 3 after {grown_s:.1f} s")
        wait_for_more(num_answers, 5)
    with asking(stack, num_clients=1, max_tokens=200) as num_answers:  # somebody is there while two of them drain
        shrunk_s = wait_for(stack, 1, exactly=True)
        wait_for_more(num_answers, 1)
    print(f"3 -> 1 after {shrunk_s:.1f} s")
