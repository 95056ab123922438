"""Ways to share out the same two cores, side by side: time to first token, gaps between tokens, tokens a second.

    python tests/bench/topologies.py [--quantization int8] [--rounds 2] [--topologies 1+1,2+2] [--cases burst]

Each topology is a `gemline up` of its own on the bench checkpoint, started anew in each round; a figure is the median
of its rounds. "1+1" is a prefill and a decode worker, "2" two workers that do both; auto, always and never say when a
prompt is prefilled elsewhere. The last column tells whether greedy answers were those of the first row.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import checkpoint
from bench.cases import CASES, VOCAB_SIZE, Case, Figures, client, warm_up
from bench.running import started
from bench.servers import Server, gemline

from gemline.bench.openai_stream import Server as Client
from gemline.bench.workloads import make, plan

_CACHED_TOKENS = 32768
_CASES = ("8 concurrent", "sessions", "burst")


def _split(num_prefill: int, num_decode: int, mode: str = "auto") -> tuple[str, ...]:
    sizes = ("--prefill", str(num_prefill), "--decode", str(num_decode))
    return ("--topology", "split", *sizes, "--remote-prefill", mode)


TOPOLOGIES = {
    "1": ("--topology", "colocated"),
    "2": ("--topology", "colocated", "--decode", "2"),
    "1+1 auto": _split(1, 1),
    "1+1 always": _split(1, 1, "always"),
    "1+1 never": _split(1, 1, "never"),
    "2+2 auto": _split(2, 2),
}


async def _texts(server: Client) -> list[str]:
    """Greedy answers to a few prompts of several lengths, asked at once."""
    server = replace(server, num_output_tokens=24)
    prompts = make(plan("random", "16-700", num_requests=6, vocab_size=VOCAB_SIZE, seed=99))
    return [done.text for done in await asyncio.gather(*(server.ask((), turns[0]) for turns in prompts))]


async def _measure(server: Client, cases: list[Case], seed: int) -> tuple[dict[str, Figures], list[str]]:
    await warm_up(server, seed)
    texts = await _texts(server)
    return {case.name: await case.measure(server, seed + 100 * at) for at, case in enumerate(cases, start=1)}, texts


def _run(options: argparse.Namespace, name: str, cases: list[Case], seed: int) -> tuple[dict[str, Figures], list[str]]:
    server = Server(name, "gemline", gemline(options.quantization, workers=TOPOLOGIES[name]))
    with (
        tempfile.TemporaryDirectory() as scratch,
        started(server, checkpoint.cached("bench"), Path(scratch), _CACHED_TOKENS) as running,
    ):
        return asyncio.run(_measure(client(running.url, server.api_key), cases, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantization", choices=["none", "int8", "int4"], default="int8")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--topologies", default=",".join(TOPOLOGIES), help="those whose name begins so")
    parser.add_argument("--cases", default=",".join(_CASES))
    parser.add_argument("--json", type=Path, help="write all figures there, round by round")
    options = parser.parse_args()
    wanted = tuple(options.topologies.split(","))
    names = [name for name in TOPOLOGIES if name.startswith(wanted)]
    cases = [case for case in CASES if case.name in options.cases.split(",")]
    rounds: dict[str, list[dict[str, Figures]]] = {name: [] for name in names}
    texts: dict[str, list[str]] = {}
    for number in range(options.rounds):
        for name in names:
            figures, texts[name] = _run(options, name, cases, 1000 * number)
            rounds[name].append(figures)
            print(f"round {number + 1}: {name}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1))
    for case in cases:
        columns = list(rounds[names[0]][0][case.name])
        print(f"\n| {case.name} | {' | '.join(columns)} | same text |\n|{' --- |' * (len(columns) + 2)}")
        for name in names:
            row = [statistics.median(ran[case.name][column] for ran in rounds[name]) for column in columns]
            same = "yes" if texts[name] == texts[names[0]] else "NO"
            print(f"| {name} | {' | '.join(f'{value:.3g}' for value in row)} | {same} |")


if __name__ == "__main__":
    main()
