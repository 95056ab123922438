"""Engines that are divided among processes: their answers are those of whole ones, and no rank outlives its group."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.decode_workers import holder, living, wait_for_workers
from support.metrics import metric
from support.noise_model.checkpoint import cached_demo
from support.processes import descendants, gone, listens_beyond_this_machine
from support.sse import complete
from support.stack import Running, start_stack
from transformers import Gemma2ForCausalLM

from gemline.cluster.records import Role

pytestmark = pytest.mark.slow

ASKED: dict[str, Any] = {"prompt": "Once", "max_tokens": 300, "ignore_eos": True, "temperature": 0.0}
EXACT = ("--runner", "process", "--topology", "colocated", "--dtype", "float32", "--threads", "1", "--first-prompt", "")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("ranks")
    running = start_stack(directory, *EXACT, "--decode", "2", "--tensor-parallel", "2")
    yield running
    running.stop()


DRAWN = {**ASKED, "temperature": 0.9, "top_p": 0.9, "seed": 5, "max_tokens": 60}
LONG = {**ASKED, "prompt": "The bird sang. " * 40, "max_tokens": 40}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What one process that has all of the model answers to ASKED, DRAWN and LONG."""
    running = start_stack(tmp_path_factory.mktemp("whole"), *EXACT)
    try:
        return [complete(running, **asked).answer for asked in (ASKED, DRAWN, LONG)]
    finally:
        running.stop()


def ranks_of(pid: int) -> list[int]:
    """The processes of the ranks that a worker has beside itself."""
    return [child for child in descendants(pid) if "gemline.rank_process" in Path(f"/proc/{child}/cmdline").read_text()]


def test_a_divided_model_answers_as_a_whole_one(stack: Running, whole: list[Any]) -> None:
    assert [complete(stack, **asked).answer for asked in (ASKED, DRAWN)] == whole[:2]


def test_a_divided_model_is_as_sure_of_bare_token_ids_as_transformers_is_behind_bos(stack: Running) -> None:
    """In float32, through the whole stack: <bos> is first though the ids that are sent lack it."""
    prompt = [300 + 7 * at % 60 for at in range(40)]
    given = stack.openai().completions.create(
        model=stack.model, prompt=prompt, max_tokens=4, temperature=0, logprobs=0, echo=True
    )
    assert given.choices[0].logprobs is not None
    theirs = Gemma2ForCausalLM.from_pretrained(cached_demo(), dtype=torch.float32, attn_implementation="eager")
    ids_1T = torch.tensor([[theirs.config.bos_token_id, *prompt]])
    with torch.inference_mode():
        for _ in range(4):
            ids_1T = torch.cat((ids_1T, theirs(ids_1T).logits[:, -1:].argmax(-1)), dim=1)
        logprobs_TV = theirs(ids_1T).logits[0, :-1].double().log_softmax(-1)
    expected = logprobs_TV.gather(1, ids_1T[0, 1:, None])[:, 0].tolist()
    assert given.choices[0].logprobs.token_logprobs == pytest.approx(expected, abs=1e-4)


def test_ranks_listen_to_this_machine_alone(stack: Running) -> None:
    for worker in wait_for_workers(stack, 2):
        (rank,) = ranks_of(worker.pid)
        assert not listens_beyond_this_machine(rank)
        assert not listens_beyond_this_machine(worker.pid)


@pytest.mark.parametrize("victim", ["rank", "rank 0"])
def test_a_rank_that_dies_takes_its_group_along_and_its_streams_go_on(stack: Running, victim: str) -> None:
    expected = complete(stack, **ASKED).answer
    workers = wait_for_workers(stack, 2)
    lost: list[int] = []

    def kill(event: int) -> None:
        if event == 20:
            worker = holder(workers)
            (rank,) = ranks_of(worker.pid)
            lost.extend((worker.pid, rank))
            os.kill(rank if victim == "rank" else worker.pid, signal.SIGKILL)

    told = complete(stack, kill, **ASKED)
    assert told.answer == expected
    assert gone(lost, within_s=5)
    assert not {worker.pid for worker in wait_for_workers(stack, 2)} & set(lost)


def test_a_rank_that_dies_while_nobody_asks_takes_its_group_along(stack: Running) -> None:
    worker = wait_for_workers(stack, 2)[0]
    (rank,) = ranks_of(worker.pid)
    killed_s = time.monotonic()
    os.kill(rank, signal.SIGKILL)
    assert gone([worker.pid], within_s=5)
    print(f"the group was gone {time.monotonic() - killed_s:.2f} s after a rank")
    assert worker.pid not in [it.pid for it in wait_for_workers(stack, 2)]


def test_divided_prefill_workers_feed_divided_decode_workers(whole: list[Any], tmp_path: Path) -> None:
    """Prefilled by two ranks, decoded by two others; when a prefill rank dies, its prompt is computed by the latter."""
    split = ("--topology", "split", "--remote-prefill", "always", "--tensor-parallel", "2")
    running = start_stack(tmp_path, *EXACT, *split)
    try:
        assert complete(running, **LONG).answer == whole[2]
        assert metric(running, "decode", "gemline_prefills_total", where="remote") == 1
        (prefill,) = living(running.ready["redis_url"], Role.PREFILL)
        (rank,) = ranks_of(prefill.pid)
        os.kill(rank, signal.SIGKILL)
        assert complete(running, **{**LONG, "prompt": "A" + LONG["prompt"]}).answer
        assert gone([prefill.pid, rank], within_s=5)
    finally:
        running.stop()
