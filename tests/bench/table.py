"""gemline beside vLLM and llama.cpp: one script starts each, asks all the same, and prints a table with the targets.

    python tests/bench/peers.py            # once: installs vLLM and llama.cpp into the cache
    python tests/bench/table.py            # everything, three rounds
    python tests/bench/table.py --quick    # one round, the shorter workloads
    python tests/bench/table.py --servers gemline,vLLM --cases prefill,stream
    python tests/bench/table.py --shape 2b --rounds 1
    python tests/bench/table.py --show tests/bench/results/2026-01-31.json

Servers of a group run at the same time and are asked in turn, round by round, so that a change of the machine's mood
meets them all; the others idle meanwhile. A figure is the median of its rounds.
"""

import argparse
import asyncio
import datetime
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import checkpoint, machine
from bench.cases import CASES, Case, client, warm_up
from bench.peers import peers
from bench.process_tree import Share
from bench.results import Comparison, Result, read
from bench.running import Running, started
from bench.servers import SERVERS, Server
from bench.targets import markdown

_RESULTS = Path(__file__).with_name("results")
_GROUPS = (  # what fits into memory side by side
    ("gemline bf16", "vLLM bf16", "vLLM fp32", "llama.cpp BF16"),
    ("gemline int8", "llama.cpp Q8_0", "gemline int4", "llama.cpp Q4_0"),
    ("gemline on Ray",),
)
_QUICK_CASES = ("prefill 512", "1 stream", "8 concurrent", "32 concurrent", "burst")
_CACHED_TOKENS = {"bench": 65536, "2b": 16384}  # 32 and 8 requests of 2048
_LARGE_CASES = ("prefill 512", "1 stream", "8 concurrent")  # of the real 2B shape
_SLOW_CASES = (
    "prefill 512",
    "1 stream",
    "8 concurrent",
)  # once, where oneDNN emulates bfloat16: a sixth of fp32's speed


@dataclass(frozen=True)
class Run:
    """What to run, as the options have it."""

    shape: str
    servers: tuple[Server, ...]
    cases: tuple[Case, ...]
    rounds: int

    @property
    def groups(self) -> list[list[Server]]:
        """Of the real shape each server runs alone."""
        if self.shape != "bench":
            return [[server] for server in self.servers]
        groups = [[server for server in self.servers if server.name in names] for names in _GROUPS]
        return [group for group in groups if group]

    def cases_of(self, server: Server, round_number: int) -> list[Case]:
        """A server on Ray is one that is started, no more: its workers are the same."""
        if server.name == "gemline on Ray":
            return []
        if server.name == "vLLM bf16" and not machine.has_bfloat16():
            return [case for case in self.cases if round_number == 0 and case.name in _SLOW_CASES]
        asked = [case for case in self.cases if server.family == "gemline" or not case.only_gemline]
        return [case for case in asked if round_number < case.rounds]


def compare(run: Run, output: Path) -> Comparison:
    """Runs all of it; what is there already is written after each round, and a failure stops nothing else."""
    model = checkpoint.cached(run.shape)
    about = {**machine.circumstances(peers()), "rounds": run.rounds, "model": checkpoint.sizes(run.shape)}
    comparison = Comparison(about, machine.peaks())
    comparison.results.update({server.name: Result() for server in run.servers})
    for group in run.groups:
        with ExitStack() as stack, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            serving = []
            for server in group:
                if running := _start(stack, server, model, Path(scratch), run, comparison.results[server.name]):
                    serving.append(running)
            for round_number in range(run.rounds):
                for running in [*serving[round_number:], *serving[:round_number]]:
                    with running.asked():
                        _ask(running, run, round_number, comparison.results[running.server.name])
                comparison.write(output)
    return comparison


def _start(stack: ExitStack, server: Server, model: Path, scratch: Path, run: Run, result: Result) -> Running | None:
    result.load_averages.append(machine.load_average())
    directory = scratch / server.name.replace(" ", "-")
    try:
        running = stack.enter_context(started(server, model, directory, _CACHED_TOKENS[run.shape]))
        result.start_s = running.start_s
        _tell(f"{server.name}: ready after {running.start_s:.1f} s")
        if run.cases_of(server, 0):
            asyncio.run(warm_up(client(running.url, server.api_key), seed=_seed(len(CASES), 0)))
    except (OSError, RuntimeError) as error:
        result.errors.append(f"start: {error}")
        _tell(f"{server.name}: {error}")
        return None
    result.saw_memory(*running.memory_bytes())
    running.halt()
    return running


def _ask(running: Running, run: Run, round_number: int, result: Result) -> None:
    result.load_averages.append(machine.load_average())
    for case in run.cases_of(running.server, round_number):
        begun_s, share = time.monotonic(), Share(os.getpid())
        try:
            seed = _seed(CASES.index(case), round_number)
            figures = asyncio.run(case.measure(client(running.url, running.server.api_key), seed))
        except (OSError, RuntimeError) as error:
            result.errors.append(f"{case.name}, round {round_number + 1}: {error}")
            _tell(f"{running.server.name}: {result.errors[-1]}")
            continue
        result.rounds[case.name].append(figures)
        result.others_share[case.name].append(share.of_others())
        result.saw_memory(*running.memory_bytes())
        told = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
        spent = f"{time.monotonic() - begun_s:.0f} s, others {100 * result.others_share[case.name][-1]:.0f}%"
        _tell(f"{running.server.name}: {case.name} ({spent}): {told}")


def _seed(case_number: int, round_number: int) -> int:
    """Prompts of its own for each case and round; a case may take the ten from there."""
    return 1000 * round_number + 10 * case_number


def _tell(line: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)


def _matching(names: Iterable[str], words: str) -> list[str]:
    """Those that begin with one of the words; raises SystemExit for a word that none begins with."""
    names = list(names)
    prefixes = words.split(",")
    if unknown := [word for word in prefixes if not any(name.startswith(word) for name in names)]:
        raise SystemExit(f"{', '.join(unknown)}: there is none of that name, but {', '.join(names)}")
    return [name for name in names if name.startswith(tuple(prefixes))]


def _plan(options: argparse.Namespace) -> Run:
    small = _LARGE_CASES if options.shape == "2b" else _QUICK_CASES if options.quick else None
    cases = _matching([case.name for case in CASES], options.cases or ",".join(small or [""]))
    servers = _matching([server.name for server in SERVERS], options.servers or "")
    return Run(
        shape=options.shape,
        servers=tuple(server for server in SERVERS if server.name in servers),
        cases=tuple(case for case in CASES if case.name in cases),
        rounds=1 if options.quick else options.rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", metavar="NAME,...", help=f"by how their names begin: {_names(SERVERS)}")
    parser.add_argument("--cases", metavar="NAME,...", help=f"likewise: {_names(CASES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of the shorter workloads")
    parser.add_argument("--shape", choices=sorted(checkpoint.SHAPES), default="bench")
    parser.add_argument("--output", type=Path, help="JSON; default: results/DATE.json beside this script")
    parser.add_argument("--show", type=Path, metavar="JSON", help="the table of an earlier run")
    options = parser.parse_args()
    if options.show:
        print(markdown(read(options.show)))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers are stopped then too
    today = datetime.datetime.now(datetime.UTC).date()
    output = options.output or _RESULTS / f"{today}{'-2b' if options.shape == '2b' else ''}.json"
    print(markdown(compare(_plan(options), output)))
    _tell(f"written to {output}")


def _names(named: Iterable[Server | Case]) -> str:
    return ", ".join(one.name for one in named)


if __name__ == "__main__":
    main()
