"""Hostile calls and connections at the public gRPC port of a running platform: faults, memory, good requests behind.

    python tests/bench/grpc_hostile.py [--cases 20000] [--connections 2000] [--seeds 1,2,3]

Random bytes, damaged and wild messages, wrong methods, odd metadata, broken HTTP/2, floods, half-open calls. Each round
ends with good requests while its connections are still open. Ends with 1 after any fault.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.grpc_attack import Victim, attack
from support.stack import start_stack

_MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000, help="calls of one seed")
    parser.add_argument("--connections", type=int, default=2_000, help="raw connections of one seed")
    parser.add_argument("--seeds", default="1,2,3", help="one platform takes all of them, one after the other")
    options = parser.parse_args()
    print(f"grpcio {grpc.__version__}\n")
    print("| seed | calls | by status | connections | faults | slowest good, ms | MiB before, after | s |")
    print("|---|---|---|---|---|---|---|---|")
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        running = start_stack(
            Path(scratch), "--runner", "process", "--topology", "colocated", "--first-prompt", "", "--admin-port", "0"
        )
        try:
            [pid] = running.pids("gateway")
            victim = Victim(running.ready["grpc"], pid, running.ready["api_key"], running.model)
            for seed in map(int, options.seeds.split(",")):
                begun_s = time.monotonic()
                outcome = asyncio.run(attack(victim, seed, options.cases, options.connections, rounds=10))
                faults += outcome.faults
                by_status = ", ".join(f"{name} {count}" for name, count in outcome.statuses.most_common())
                calls = f"{outcome.statuses.total()} | {by_status} | {outcome.num_connections} | {len(outcome.faults)}"
                memory = f"{outcome.rss_before // _MIB}, {outcome.rss_after // _MIB}"
                took = f"{max(outcome.good_s) * 1e3:.0f} | {memory} | {time.monotonic() - begun_s:.0f}"
                print(f"| {seed} | {calls} | {took} |", flush=True)
            assert running.process.poll() is None, "the platform has ended"
        finally:
            running.stop()
    print("\n".join(faults[:20]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
