"""Hostile bytes at the public gRPC port: no fault of ours, and a good request is answered at once behind them.

A short run with a fixed seed; `tests/bench/grpc_hostile.py` is the long one.
"""

import pytest
from support.grpc_attack import Victim, attack
from support.stack import Running

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shared-stacks")]

AT_ONCE_S = 10.0
MAX_GROWTH = 100 * 1024 * 1024  # bytes; what is kept of each call would be more


async def test_no_bytes_make_a_fault_and_a_good_request_is_answered_at_once(colocated_stack: Running) -> None:
    [pid] = colocated_stack.pids("gateway")
    victim = Victim(colocated_stack.ready["grpc"], pid, colocated_stack.ready["api_key"], colocated_stack.model)
    outcome = await attack(victim, seed=1, num_cases=1200, num_connections=120)
    assert not outcome.faults, "\n".join(outcome.faults)
    assert max(outcome.good_s) < AT_ONCE_S
    assert outcome.rss_after - outcome.rss_before < MAX_GROWTH
    assert outcome.num_connections == 120
    # Of what is right, of what is wrong, of what is nowhere: the bytes get far enough.
    assert min(outcome.statuses[name] for name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED")) > 50
    assert colocated_stack.process.poll() is None
