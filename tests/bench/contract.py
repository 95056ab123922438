"""Many generated requests over the live OpenAPI documents of a running platform: faults, and answers unlike them.

    python tests/bench/contract.py [--examples 200] [--seeds 1,2,3] [--limit-s 1200]

Schemathesis, all phases, on the public and the admin API of `gemline up` with the demo model. Counted are requests,
answers of 5xx and failed checks; what failed is printed with the command that repeats it. Ends with 1 if anything did.
"""

import argparse
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.contract import run, start, targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=200, help="of each operation and phase, at most")
    parser.add_argument("--seeds", default="1,2,3", help="a run of both APIs for each")
    parser.add_argument("--limit-s", type=int, default=1200, help="of one run")
    options = parser.parse_args()
    print(f"schemathesis {version('schemathesis')}, fastapi {version('fastapi')}, pydantic {version('pydantic')}\n")
    print("| API | seed | requests | by status | 5xx | failed checks | s |\n|---|---|---|---|---|---|---|")
    failed = []
    for seed in map(int, options.seeds.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch)
            running = start(directory)
            try:
                for api, target in targets(running).items():
                    begun_s = time.monotonic()
                    outcome = run(target, directory, seed=seed, num_examples=options.examples, limit_s=options.limit_s)
                    by_status = ", ".join(f"{status}: {count}" for status, count in sorted(outcome.statuses.items()))
                    counts = f"{outcome.num_faults} | {len(outcome.failures)} | {time.monotonic() - begun_s:.0f}"
                    print(f"| {api} | {seed} | {outcome.statuses.total()} | {by_status} | {counts} |", flush=True)
                    if outcome.failures or outcome.num_faults:
                        failed.append(outcome.printed)
                assert running.process.poll() is None, "the platform has ended"
            finally:
                running.stop()
    print("\n".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
