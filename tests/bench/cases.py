"""The workloads of the comparison. Each asks the same of every server and gives a few figures. Knows no server's name.

Prompts are token ids, so that their lengths are exact; a round has prompts of its own, the same for all servers, which
no prefix cache knows. Every answer has its full length.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace

from gemline.bench import load
from gemline.bench.http import Origin
from gemline.bench.load import Pace
from gemline.bench.measure import Record, Summary, percentile, summarize
from gemline.bench.openai_stream import Server
from gemline.bench.workloads import Conversation, make, plan

VOCAB_SIZE = 32000  # ids are drawn from below it

Figures = dict[str, float]
Measure = Callable[[Server, int], Coroutine[None, None, Figures]]  # of a server and a seed


@dataclass(frozen=True)
class Case:
    """`rounds` is how many of a run's rounds have it: long ones are not run in each."""

    name: str
    measure: Measure
    rounds: int = 3
    only_gemline: bool = False


def client(url: str, api_key: str | None, timeout_s: float = 600.0) -> Server:
    """What asks that server; every server calls its model `bench`."""
    return Server(Origin.parse(url), api_key, "bench", "completions", ignore_eos=True, timeout_s=timeout_s)


async def warm_up(server: Server, seed: int) -> None:
    """Every size of step that the cases have, once and a little."""
    await _run(server, _random("600", 1, seed), 1, 4)
    await _run(server, _random("64", 8, seed + 1), 8, 4)
    await _run(server, _random("16", 32, seed + 2), 32, 4)


def _prefill(num_tokens: int, num_requests: int) -> Measure:
    async def measure(server: Server, seed: int) -> Figures:
        ran = await _run(server, _random(str(num_tokens), num_requests, seed), 1, 1)
        assert ran.ttft_ms
        return {"prefill_tokens_per_s": num_tokens / ran.ttft_ms.p50 * 1e3, "ttft_p50_ms": ran.ttft_ms.p50}

    return measure


async def _one_stream(server: Server, seed: int) -> Figures:
    """Tokens a second of decoding alone: the inverse of the mean time per output token."""
    ran = await _run(server, _random("128", 2, seed), 1, 128)
    assert ran.itl_ms and ran.tpot_ms
    return {"decode_tokens_per_s": 1e3 / ran.tpot_ms.p50, "itl_p50_ms": ran.itl_ms.p50}


def _concurrent(concurrency: int, num_requests: int) -> Measure:
    async def measure(server: Server, seed: int) -> Figures:
        return _together(await _run(server, _random("128-256", num_requests, seed), concurrency, 64))

    return measure


def _sessions(num_sessions: int, num_turns: int) -> Measure:
    async def measure(server: Server, seed: int) -> Figures:
        options = plan(
            "session",
            "128-256",
            num_sessions=num_sessions,
            num_turns=num_turns,
            num_prefix_tokens=256,
            as_text=False,
            vocab_size=VOCAB_SIZE,
            seed=seed,
        )
        return _together(await _run(server, make(options), num_sessions, 64))

    return measure


async def _burst(server: Server, seed: int) -> Figures:
    """Gaps of 8 running streams, quiet and while 4 prompts of 1500 tokens come in at once."""
    quiet = await load.run(replace(server, num_output_tokens=128), _random("128", 8, seed), Pace(8))
    streams = load.run(replace(server, num_output_tokens=384), _random("128", 8, seed + 1), Pace(8))
    running = asyncio.create_task(streams)
    await asyncio.sleep(quiet.duration_s / 2)
    burst = await load.run(replace(server, num_output_tokens=1), _random("1500", 4, seed + 2), Pace(4))
    disturbed = await running
    start_s = min(record.sent_s for record in burst.records)
    stop_s = max(record.sent_s + record.latency_s for record in burst.records)
    calm_s = max(record.chunk_times_s[0] for record in quiet.records)  # its own prefills are over
    before = _p99_gap_ms(quiet.records, calm_s, float("inf"))
    during = _p99_gap_ms(disturbed.records, start_s, stop_s)
    ttfts_ms = sorted(record.ttft_s * 1e3 for record in burst.records)
    return {
        "quiet_itl_p99_ms": before,
        "burst_itl_p99_ms": during,
        "burst_over_quiet": during / before,
        "burst_ttft_p50_ms": percentile(ttfts_ms, 50),
        "burst_ttft_max_ms": ttfts_ms[-1],
    }


def _p99_gap_ms(records: list[Record], start_s: float, stop_s: float) -> float:
    """Of gaps that lie, at least in part, between those times."""
    gaps = [
        after - before
        for record in records
        for before, after in zip(record.chunk_times_s, record.chunk_times_s[1:], strict=False)
        if before < stop_s and after > start_s
    ]
    return percentile(sorted(gaps), 99) * 1e3


def _random(prompt_tokens: str, num_requests: int, seed: int) -> list[Conversation]:
    return make(plan("random", prompt_tokens, num_requests=num_requests, vocab_size=VOCAB_SIZE, seed=seed))


async def _run(server: Server, conversations: list[Conversation], concurrency: int, num_output_tokens: int) -> Summary:
    """Raises RuntimeError when a request failed or an answer is shorter than asked: then there is no figure."""
    ran = await load.run(replace(server, num_output_tokens=num_output_tokens), conversations, Pace(concurrency))
    summary = summarize(ran.records, ran.duration_s)
    if summary.num_failed or summary.output_tokens != summary.num_ok * num_output_tokens:
        raise RuntimeError(f"{summary.num_failed} failed, {summary.output_tokens} output tokens: {summary.errors}")
    return summary


def _together(ran: Summary) -> Figures:
    assert ran.ttft_ms and ran.itl_ms and ran.tpot_ms
    return {
        "output_tokens_per_s": ran.output_rate,
        "ttft_p50_ms": ran.ttft_ms.p50,
        "ttft_p99_ms": ran.ttft_ms.p99,
        "itl_p50_ms": ran.itl_ms.p50,
        "itl_p99_ms": ran.itl_ms.p99,
        "tpot_p50_ms": ran.tpot_ms.p50,
    }


CASES = (
    Case("prefill 512", _prefill(512, 3)),
    Case("prefill 1536", _prefill(1536, 2)),
    Case("1 stream", _one_stream),
    Case("8 concurrent", _concurrent(8, 16)),
    Case("32 concurrent", _concurrent(32, 32)),
    Case("sessions", _sessions(8, 5), rounds=1),
    Case("burst", _burst, only_gemline=True),
)
