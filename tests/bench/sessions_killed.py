"""Sessions whose worker is killed between turns, beside sessions whose workers live; and what a hit saves.

    python tests/bench/sessions_killed.py [--quantization int8] [--sessions 6] [--turns 5] [--history 1500]

Two workers on the bench checkpoint, greedy answers. The same conversations are held twice through the session API: once
undisturbed, once with the owner of a session killed (SIGKILL) after each round of turns but the last. Then, for new
sessions, the time to the first token of a first turn of so many tokens (cold) and of the turn after it (a hit).
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import checkpoint
from support.decode_workers import wait_for_workers
from support.stack import Running, start_stack

from gemline.bench.workloads import make, plan
from gemline.client import Client, RetryPolicy, Session
from gemline.errors import GemlineError

_PAIRS = 7
_TOKENS_OF_A_WORD = 1.5  # of the demo tokenizer, about


@contextmanager
def platform(quantization: str) -> Iterator[tuple[Running, Client]]:
    """Two workers that prefill for themselves, and a client that sends each turn once."""
    size = ("--runner", "process", "--topology", "colocated", "--decode", "2", "--kv-blocks", "2048")
    # In float32 what is computed again after a worker's death gives the same answers.
    kind = ("--model", str(checkpoint.cached("bench")), "--quantization", quantization, "--dtype", "float32")
    with tempfile.TemporaryDirectory() as scratch:
        running = start_stack(Path(scratch), *size, *kind, "--first-prompt", "")
        try:
            once = RetryPolicy(max_attempts=1)
            with Client(running.ready["grpc"], api_key=running.ready["api_key"], retry=once, timeout_s=300) as client:
                yield running, client
        finally:
            running.stop()


def turn(session: Session, text: str) -> tuple[str, float]:
    """The answer and the time to its first token in milliseconds; the answer of a turn that failed is its error."""
    begun_s = time.perf_counter()
    first_ms, answer = 0.0, ""
    try:
        with session.stream(text, max_tokens=32, temperature=0.0) as stream:
            for piece in stream:
                first_ms = first_ms or (time.perf_counter() - begun_s) * 1e3
                answer += piece.text
    except GemlineError as error:
        print(f"a turn failed: {error}", file=sys.stderr)
        return f"failed: {error.code}", 0.0
    return answer, first_ms


def hold(client: Client, running: Running, conversations: list[list[str]], *, kills: bool) -> list[list[str]]:
    """The answers of each session, turn by turn."""
    sessions = [client.sessions.create() for _ in conversations]
    answers: list[list[str]] = [[] for _ in conversations]
    num_turns = len(conversations[0])
    for number in range(num_turns):
        for session, texts, said in zip(sessions, conversations, answers, strict=True):
            said.append(turn(session, texts[number])[0])
        if kills and number < num_turns - 1:
            workers = wait_for_workers(running, 2)
            os.kill(workers[number % 2].pid, signal.SIGKILL)
    wait_for_workers(running, 2)
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantization", choices=["none", "int8", "int4"], default="int8")
    parser.add_argument("--sessions", type=int, default=6)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--history", type=int, default=1500)
    options = parser.parse_args()
    with platform(options.quantization) as (running, client):
        asked = plan(
            "session",
            "40-80",
            num_sessions=options.sessions,
            num_turns=options.turns,
            num_prefix_tokens=0,
            as_text=True,
        )
        conversations = [[ask.text for ask in turns] for turns in make(asked)]
        calm = hold(client, running, conversations, kills=False)
        disturbed = hold(client, running, conversations, kills=True)
        failed = [sum(answer.startswith("failed: ") for said in held for answer in said) for held in (calm, disturbed)]
        print(f"{options.sessions} sessions x {options.turns} turns, {options.turns - 1} workers killed between turns")
        print(f"failed turns: {failed[0]} undisturbed, {failed[1]} with kills; equal answers: {calm == disturbed}")
        cold_ms, hit_ms = [], []
        num_words = round(options.history / _TOKENS_OF_A_WORD)
        words = make(plan("random", str(num_words), num_requests=_PAIRS, as_text=True, seed=7))
        for (ask,) in words:
            session = client.sessions.create()
            cold_ms.append(turn(session, ask.text)[1])
            num_tokens = session.refresh().num_tokens
            hit_ms.append(turn(session, "And what then?")[1])
        cold, hit = statistics.median(cold_ms), statistics.median(hit_ms)
        print(f"first token, medians of {_PAIRS}: cold {cold:.0f} ms, hit {hit:.0f} ms ({hit / cold:.2f}x)", end="")
        print(f" at {num_tokens} tokens of history")


if __name__ == "__main__":
    main()
