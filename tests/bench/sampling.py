"""What choosing a step's tokens costs: milliseconds for each kind of request, over 1, 8 and 32 rows.

    python tests/bench/sampling.py [--threads 2] [--vocab 32000 256000] [--rows 1 8 32] [--rounds 15]

The best and the median of several rounds; the kinds take turns, so that other load on the machine meets all alike.
Logits are Gaussian, of a deviation of 4 (like a trained model's: a few tokens hold the mass) or of 1 (`flat`: like
those of random weights, where top_p leaves thousands of tokens).
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch

from gemline.engine.history import History
from gemline.engine.params import SamplingParams
from gemline.engine.sampling import SampleRow, sample

NUM_PROMPT, NUM_ANSWER = 1500, 64
PEAKED, FLAT = 4.0, 1.0
WARM = SamplingParams(max_tokens=256, temperature=0.8)
GREEDY = replace(WARM, temperature=0.0)
KINDS: dict[str, SamplingParams] = {
    "greedy": GREEDY,
    "temperature": WARM,
    "top_k 40": replace(WARM, top_k=40),
    "top_p 0.95": replace(WARM, top_p=0.95),
    "top_k 64, top_p 0.95": replace(WARM, top_k=64, top_p=0.95),
    "min_p 0.05": replace(WARM, min_p=0.05),
    "penalties": replace(WARM, repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.2),
    "greedy, penalties": replace(GREEDY, repetition_penalty=1.1, presence_penalty=0.2, frequency_penalty=0.2),
    "greedy, logprobs 5": replace(GREEDY, num_logprobs=5),
    "top_p 0.95, logprobs 5": replace(WARM, top_p=0.95, num_logprobs=5),
}


def rows_of(all_params: list[SamplingParams], vocab_size: int) -> list[SampleRow]:
    """Rows with the history of a prompt and an answer of random tokens."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for seed, params in enumerate(all_params):
        prompt, answer = (
            torch.randint(vocab_size, (number,), generator=generator).tolist() for number in (NUM_PROMPT, NUM_ANSWER)
        )
        history = History(prompt, answer) if params.penalized else History()
        rows.append(SampleRow(replace(params, seed=seed), NUM_PROMPT + NUM_ANSWER, history))
    return rows


def step_s(logits_BV: torch.Tensor, rows: list[SampleRow]) -> float:
    """Seconds of one step's sampling, with what a sequence does with its token."""
    start_s = time.perf_counter()
    sampled = sample(logits_BV, rows)
    for row, choice in zip(rows, sampled, strict=True):
        assert choice is not None
        if row.params.penalized:
            row.history.append(choice.token_id)
    return time.perf_counter() - start_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocab", type=int, nargs="+", default=[32_000, 256_000])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for vocab_size in options.vocab:
        for num_rows in options.rows:
            logits_BV = torch.randn((num_rows, vocab_size), generator=torch.Generator().manual_seed(0))
            cases = [
                (name, logits_BV * deviation, rows_of(all_params, vocab_size))
                for name, all_params, deviation in kinds(num_rows)
            ]
            times_s: dict[str, list[float]] = {name: [] for name, _, _ in cases}
            with torch.inference_mode():
                for _ in range(options.rounds):
                    for name, scaled_BV, rows in cases:
                        times_s[name].append(step_s(scaled_BV, rows))
            print(f"\n{num_rows} rows of {vocab_size}, {options.threads} threads; ms: best, median")
            for name, taken_s in times_s.items():
                print(f"  {name:28} {min(taken_s) * 1e3:8.2f} {statistics.median(taken_s) * 1e3:8.2f}", flush=True)


def kinds(num_rows: int) -> list[tuple[str, list[SamplingParams], float]]:
    """Names, what each row asks for, and the deviation of its logits."""
    mixed = list(KINDS.values())
    return [
        *((name, [params] * num_rows, PEAKED) for name, params in KINDS.items()),
        ("flat top_p 0.95", [KINDS["top_p 0.95"]] * num_rows, FLAT),
        ("mixed", [mixed[row % len(mixed)] for row in range(num_rows)], PEAKED),
    ]


if __name__ == "__main__":
    main()
