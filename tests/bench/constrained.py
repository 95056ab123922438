"""What constrained answers cost in a step: milliseconds of sampling for a batch, plain and constrained in turns.

    python tests/bench/constrained.py [--rows 32] [--vocab 256000] [--threads 2] [--steps 60]

The vocabulary is made up (words of syllables, numbers, pieces of JSON, letters of many scripts) and as large as
Gemma's. Each row follows an own answer through a JSON schema, drawn from flat logits, so that strings are long. `ready`
masks were worked out before, as in a worker whose step takes longer than they do; `waited` ones were not.
"""

import argparse
import asyncio
import json
import random
import statistics
import time

import torch
from tokenizers import Tokenizer as Backend

from gemline.demo.tokenizer import LETTERS, SPACE, build_tokenizer
from gemline.engine.constraint import Constraint, Syntax
from gemline.engine.params import SamplingParams
from gemline.engine.sampling import SampleRow, sample
from gemline.grammar.grammars import Grammars
from gemline.grammar.matcher import GrammarMatcher
from gemline.text.tokenizer import Tokenizer

END_IDS = (1, 107)
SCHEMA = """{"type": "object", "additionalProperties": false, "required": ["name", "age", "tags", "note"],
  "properties": {
  "name": {"type": "string"}, "age": {"type": "integer"}, "note": {"type": "string"},
  "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}}}}"""
SYLLABLES = ("ka", "to", "re", "mi", "so", "ing", "er", "ion", "th", "an", "al", "co", "in", "pro", "de", "ly", "tion")
PIECES = ('",', '": ', '{"', '"}', "],", '"]', "\\n", "://", "();")


def wide_tokenizer(vocab_size: int) -> Tokenizer:
    """The demo's first tokens and letters, and made-up words up to `vocab_size`."""
    backend: Backend = build_tokenizer()
    fields = json.loads(backend.to_str())
    draw = random.Random(0)
    first = dict(sorted(fields["model"]["vocab"].items(), key=lambda item: item[1])[: 473 + len(LETTERS)])
    while len(first) < vocab_size:
        first.setdefault(_word(draw), len(first))
    fields["model"] |= {"vocab": first, "merges": []}
    return Tokenizer.load(json.dumps(fields).encode())


def _word(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.05:
        return draw.choice(PIECES) + draw.choice(SYLLABLES) * draw.randint(0, 3)
    if kind < 0.1:
        return str(draw.randint(0, 99_999))
    if kind < 0.3:
        return "".join(chr(draw.randint(0x400, 0x9FFF)) for _ in range(draw.randint(1, 3)))
    return (SPACE if kind < 0.7 else "") + "".join(draw.choices(SYLLABLES, k=draw.randint(1, 5)))


async def matchers(tokenizer: Tokenizer, vocab_size: int, num_rows: int) -> list[GrammarMatcher]:
    """One for each row, and what it took to have them."""
    grammars = Grammars(lambda: tokenizer, vocab_size, END_IDS)
    constraint = Constraint(Syntax.JSON_SCHEMA, SCHEMA)
    start_s = time.perf_counter()
    first = await grammars.matcher(constraint)
    ready_s = time.perf_counter()
    rest = [await grammars.matcher(constraint) for _ in range(num_rows - 1)]
    each_ms = (time.perf_counter() - ready_s) / max(1, num_rows - 1) * 1e3
    print(f"vocabulary and first matcher {ready_s - start_s:.2f} s; a further one {each_ms:.2f} ms")
    return [first, *rest]


def timed_ms(logits_BV: torch.Tensor, rows: list[SampleRow]) -> tuple[float, list[int]]:
    """A step's sampling, and its tokens."""
    start_s = time.perf_counter()
    sampled = sample(logits_BV, rows)
    took_ms = (time.perf_counter() - start_s) * 1e3
    return took_ms, [0 if choice is None else choice.token_id for choice in sampled]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=256_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = wide_tokenizer(options.vocab)
    logits_BV = torch.randn((options.rows, options.vocab), generator=torch.Generator().manual_seed(0))
    for name, temperature in (("greedy", 0.0), ("temperature", 0.8)):
        params = SamplingParams(max_tokens=256, temperature=temperature)
        plain = [SampleRow(params, position) for position in range(options.rows)]
        following = asyncio.run(matchers(tokenizer, options.vocab, options.rows))
        times_ms: dict[str, list[float]] = {"plain": [], "constrained, ready": [], "constrained, waited": []}
        draw = torch.Generator().manual_seed(1)
        for step in range(options.steps):
            logits_BV.copy_(torch.randn(logits_BV.shape, generator=draw))
            rows = [SampleRow(params, step, matcher=matcher) for matcher in following]
            times_ms["plain"].append(timed_ms(logits_BV, plain)[0])
            kind = "constrained, waited" if step % 2 else "constrained, ready"
            took_ms, token_ids = timed_ms(logits_BV, rows)
            times_ms[kind].append(took_ms)
            for matcher, token_id in zip(following, token_ids, strict=True):
                if token_id not in END_IDS:
                    matcher.advance(token_id)
            if kind == "constrained, waited":  # so that the next ones are ready
                time.sleep(0.2)
        print(f"{options.rows} rows of {options.vocab}, {options.threads} threads, {name}; ms: best, median, worst")
        for kind, taken in times_ms.items():
            print(f"  {kind:22}{min(taken):8.2f} {statistics.median(taken):8.2f} {max(taken):8.2f}", flush=True)


if __name__ == "__main__":
    main()
