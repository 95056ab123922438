"""The comparison's own parts, on servers and figures that are known."""

import json
import os
from pathlib import Path

import pytest
from bench import checkpoint, process_tree
from bench.cases import CASES, client
from bench.results import Comparison, Result, read
from bench.sentencepiece_file import sentencepiece_model
from bench.targets import markdown
from safetensors import safe_open
from support.openai_server import ForeignServer
from tokenizers import Tokenizer

from gemline.engine.config import Gemma2Config

SMALL = checkpoint.Shape(1100, 32, 64, 2, 4, 2, 16, 16, 256, 16)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("checkpoint")
    checkpoint.write(target, SMALL)
    return target


def test_a_checkpoint_holds_every_tensor_in_its_shape_and_the_same_bytes_each_time(
    written: Path, tmp_path: Path
) -> None:
    shapes = Gemma2Config.load(written).parameter_shapes()
    with safe_open(written / "model.safetensors", framework="pt") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.offset_keys()} == shapes
        assert {file.get_slice(name).get_dtype() for name in shapes} == {"BF16"}
    checkpoint.write(tmp_path, SMALL)
    assert (tmp_path / "model.safetensors").read_bytes() == (written / "model.safetensors").read_bytes()


def test_the_padded_tokenizer_cuts_text_as_the_demos_does_and_can_say_every_id(written: Path) -> None:
    tokenizer = Tokenizer.from_file(str(written / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == SMALL.vocab_size
    assert max(tokenizer.encode("hello the world 1050").ids) < 1024
    assert tokenizer.decode([1050, 1099]) == " word1050 word1099"


def test_the_sentencepiece_file_has_a_piece_for_each_id() -> None:
    tokenizer = checkpoint.padded_tokenizer(SMALL.vocab_size)
    content = sentencepiece_model(tokenizer)
    at = [
        content.index(b"\x0a" + bytes([len(text)]) + text)
        for text in (b"<pad>", b"<eos>", b"<0x00>", "▁word1099".encode())
    ]
    assert at == sorted(at)


async def test_a_case_tells_the_figures_of_its_answers() -> None:
    prefill = next(case for case in CASES if case.name == "prefill 512")
    with ForeignServer(num_pieces=1, models=("bench",), pause_s=0.01) as foreign:
        figures = await prefill.measure(client(foreign.url, "sk-foreign"), 7)
    assert figures["prefill_tokens_per_s"] == pytest.approx(512e3 / figures["ttft_p50_ms"])
    assert all(len(body["prompt"]) == 512 and body["ignore_eos"] for body in foreign.bodies)
    assert len({tuple(body["prompt"]) for body in foreign.bodies}) == len(foreign.bodies)


async def test_an_answer_that_is_too_short_gives_no_figure() -> None:
    one_stream = next(case for case in CASES if case.name == "1 stream")
    with (
        ForeignServer(num_pieces=3, models=("bench",)) as foreign,
        pytest.raises(RuntimeError, match="6 output tokens"),
    ):
        await one_stream.measure(client(foreign.url, "sk-foreign"), 7)


def _comparison() -> Comparison:
    about = {
        "date": "2026-01-31",
        "cpu": "some CPU",
        "cores": 2,
        "flags": ["avx2"],
        "memory_gib": 24.0,
        "versions": {"gemline": "1"},
        "rounds": 3,
        "model": {"weights": 10**9, "head_weights": 0},
    }
    comparison = Comparison(about, {"bf16_gflops": 400.0, "read_gbytes": 20.0})
    for name, rates in {"gemline bf16": (90.0, 100.0, 300.0), "vLLM fp32": (50.0,), "llama.cpp BF16": (80.0,)}.items():
        result = comparison.results.setdefault(name, Result(start_s=9.0))
        result.rounds["prefill 512"] = [{"prefill_tokens_per_s": rate, "ttft_p50_ms": 1.0} for rate in rates]
        result.saw_memory(3_000_000, 2_000_000)
    return comparison


def test_a_target_is_held_against_the_better_peer_and_the_median_round() -> None:
    lines = markdown(_comparison()).splitlines()
    assert (
        "| gemline bf16, prefill 512: prefill_tokens_per_s | 100 | 80 (llama.cpp BF16) | 1.25 | >= 1.1 | met |" in lines
    )
    assert "| gemline bf16: start to ready, s | 9 |  |  | <= 8 | MISSED |" in lines
    assert "| gemline bf16, prefill 512 | 50% of 400 GOP/s |" in lines


def test_what_is_written_reads_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results" / "run.json"
    comparison = _comparison()
    comparison.write(path)
    assert markdown(read(path)) == markdown(comparison)
    assert (
        json.loads(path.read_text())["servers"]["gemline bf16"]["medians"]["prefill 512"]["prefill_tokens_per_s"] == 100
    )


def test_the_tree_holds_this_process_and_memory_is_more_than_nothing() -> None:
    assert os.getpid() in process_tree.tree(os.getppid())
    assert process_tree.memory_bytes(os.getpid()) > 1 << 20
    assert process_tree.memory_bytes(2**31 - 1) == 0


def test_the_share_of_others_is_a_part_of_the_machine() -> None:
    share = process_tree.Share(os.getpid())
    sum(range(10**7))
    assert 0 <= share.of_others() <= 1
    assert process_tree.cpu_s(os.getpid()) > 0
