"""Gemma 2 27B's own widths, 2 local and 2 global layers, divided between two ranks here: right, how large, how fast.

    python tests/bench/divided_27b.py [--tokens 4200] [--answer 16] [--threads 1]

The checkpoint has random bfloat16 weights (6.9 GB, made once in the cache). Run one after the other: a whole stack with
prefill and decode workers of two ranks each, in bfloat16; one worker of two ranks in float32; transformers in float32.
Each stack answers the same prompts of token ids, greedily; transformers reads prompt and answer at once. Printed are
the time from a stack's start until it serves, each rank's most anonymous memory until then beside what its part
weighs, the time until the first token, and how far log-probabilities are from transformers'. Exit code 1: a token is
not transformers' own although theirs leads by more than rounding explains, log-probabilities in float32 are further
from theirs than float32's rounding, or a rank had 1 GB more than its part.

float32 takes 14 GB; the split stack needs more than this machine has in that.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import torch
from bench.checkpoint import cached
from bench.process_tree import tree
from support.stack import Running, start_stack
from tokenizers import Tokenizer
from transformers import Gemma2ForCausalLM

from gemline.engine.config import Gemma2Config
from gemline.engine.footprint import Footprint

NAME = "27b-4"
BOS = 2  # a gateway puts it before a prompt that lacks it, and transformers does not
STACKS = {
    "split, bfloat16": ("--topology", "split", "--remote-prefill", "always", "--dtype", "bfloat16"),
    "one worker, float32": ("--topology", "colocated", "--dtype", "float32"),
}
_ROOM_BYTES = 10**9  # beside its part, that a rank may take while it loads
_FLOAT32_LOGPROB = 1e-4  # how far a log-probability may be from transformers' in float32


@dataclass
class Peaks:
    """Most anonymous memory of each process below one, by process id."""

    num_bytes: dict[int, int] = field(default_factory=dict)

    @contextmanager
    def watched(self, root_pid: int) -> Iterator[None]:
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.2):
                for pid in tree(root_pid)[1:]:
                    self.num_bytes[pid] = max(self.num_bytes.get(pid, 0), _anonymous_bytes(pid))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@dataclass(frozen=True)
class Answer:
    token_ids: list[int]
    logprobs: list[dict[int, float]]  # of each position's likeliest tokens, the chosen one among them
    first_s: float  # until the first token


class Run(NamedTuple):
    """Of one stack."""

    answers: list[Answer]
    is_over: bool  # whether a rank took too much memory


def _anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def ask(stack: Running, prompt: list[int], num_tokens: int, ids: dict[str, int]) -> Answer:
    body = {"model": stack.model, "prompt": prompt, "temperature": 0, "ignore_eos": True, "logprobs": 5}
    begun_s = time.monotonic()
    found = _post(stack, {**body, "max_tokens": 1})
    first_s = time.monotonic() - begun_s
    found = _post(stack, {**body, "max_tokens": num_tokens})
    likeliest = [{ids[token]: value for token, value in named.items()} for named in found["top_logprobs"]]
    return Answer([ids[token] for token in found["tokens"]], likeliest, first_s)


def _post(stack: Running, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {stack.ready['api_key']}"}
    told = httpx.post(f"{stack.base_url}/completions", json=body, headers=headers, timeout=3600)
    told.raise_for_status()
    logprobs: dict[str, Any] = told.json()["choices"][0]["logprobs"]
    return logprobs


def run(name: str, options: tuple[str, ...], prompts: list[list[int]], asked: argparse.Namespace) -> Run:
    """The stack's answers; prints what it took."""
    model = cached(NAME)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = {tokenizer.decode([token_id], skip_special_tokens=False): token_id for token_id in range(256000)}
    ranks = ("--tensor-parallel", "2", "--threads", str(asked.threads), "--kv-blocks", "600", "--first-prompt", "")
    peaks = Peaks()
    with tempfile.TemporaryDirectory() as directory:
        begun_s = time.monotonic()
        with peaks.watched(os.getpid()):  # until it serves
            stack = start_stack(Path(directory), "--runner", "process", *ranks, *options, model=model, limit_s=600)
        start_s = time.monotonic() - begun_s
        try:
            answers = [ask(stack, prompt, asked.answer, ids) for prompt in prompts]
        finally:
            stack.stop()
    config = Gemma2Config.load(model)
    part = Footprint(config, "bf16", "bf16", 2).weight_bytes * (1 if "bfloat16" in options else 2)
    largest = sorted((size for size in peaks.num_bytes.values() if size > part / 2), reverse=True)
    taken = ", ".join(f"{size / 1e9:.2f} GB" for size in largest)
    print(f"{name}: ready in {start_s:.1f} s; a rank's part {part / 1e9:.2f} GB; each took, while it loaded, {taken}")
    if is_over := largest[0] > part + _ROOM_BYTES:
        print(f"{name}: OVER by {(largest[0] - part - _ROOM_BYTES) / 1e9:.2f} GB")
    for prompt, answer in zip(prompts, answers, strict=True):
        print(f"{name}: {len(prompt)} tokens, the first after {answer.first_s:.1f} s")
    return Run(answers, is_over)


def compare(name: str, prompts: list[list[int]], answers: list[Answer], theirs: Gemma2ForCausalLM) -> bool:
    """Whether all are theirs as far as rounding lets one say; prints how far apart they are."""
    furthest, num_equal, num_all, wrong = 0.0, 0, 0, 0
    for prompt, answer in zip(prompts, answers, strict=True):
        number = len(answer.token_ids)
        given = torch.tensor([[*prompt, *answer.token_ids[:-1]]])
        with torch.inference_mode():
            logits_TV = theirs(given, logits_to_keep=number).logits[0].float()
        logprobs_TV = logits_TV.double().log_softmax(-1)
        at_T = torch.tensor(answer.token_ids)
        chosen_T = logprobs_TV.gather(1, at_T[:, None])[:, 0]
        difference = max(
            abs(float(logprobs_V[token_id]) - value)
            for logprobs_V, named in zip(logprobs_TV, answer.logprobs, strict=True)
            for token_id, value in named.items()
        )
        lead_T = logprobs_TV.amax(-1) - chosen_T
        furthest = max(furthest, difference)
        num_equal += int((lead_T == 0).sum())
        wrong += int((lead_T > 2 * difference).sum())
        num_all += number
    print(f"{name}: {num_equal} of {num_all} tokens are transformers' own; log-probabilities differ by {furthest:.1e}")
    return not wrong and (furthest < _FLOAT32_LOGPROB or "float32" not in STACKS[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4200, help="of the long prompt; the window has 4096")
    parser.add_argument("--stacks", nargs="*", choices=STACKS, default=list(STACKS))
    parser.add_argument("--answer", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2, help="of an engine, for both its ranks")
    asked = parser.parse_args()
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(1)
    prompts = [
        [BOS, *torch.randint(1024, 256000, (size - 1,), generator=generator).tolist()] for size in (40, asked.tokens)
    ]
    runs = {name: run(name, options, prompts, asked) for name, options in STACKS.items() if name in asked.stacks}
    theirs = Gemma2ForCausalLM.from_pretrained(cached(NAME), dtype=torch.float32, attn_implementation="eager")
    right = [compare(name, prompts, found.answers, theirs) for name, found in runs.items()]
    sys.exit(0 if all(right) and not any(found.is_over for found in runs.values()) else 1)


if __name__ == "__main__":
    main()
