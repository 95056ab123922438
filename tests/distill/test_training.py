"""The loop: it learns, it goes on where it was, and a disk that is full costs no more than the last minutes."""

from pathlib import Path

import pytest
import torch

from gemline.distill.examples import Batcher, Example
from gemline.distill.network import Network, fresh_weights
from gemline.distill.snapshots import load_snapshot, save_snapshot
from gemline.distill.training import Plan, Progress, Training, rate_share
from gemline.engine.config import Gemma2Config
from gemline.errors import ConfigurationError

CONFIG = Gemma2Config(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    query_pre_attn_scalar=8,
    sliding_window=8,
    max_position_embeddings=16,
)
PLAN = Plan(num_tokens=6400, tokens_per_batch=128, snapshot_every_s=0.0)


class StopHereError(Exception):
    """Ends a training in the middle."""


def counting(index: int, _progress: float) -> Example:
    """Numbers that rise by one, from a start that depends on the index."""
    ids = [(index * 7 + step) % 30 + 2 for step in range(16)]
    return Example(ids, [False] + [True] * 15)


def training(directory: Path, teacher: Network | None = None, seed: int = 0) -> tuple[Training, Network]:
    student = Network(CONFIG, fresh_weights(CONFIG, seed))
    return Training(directory, student, Batcher(counting, 128, 16), PLAN, teacher), student


def test_it_learns_what_follows_what(tmp_path: Path) -> None:
    seen: list[Progress] = []
    training(tmp_path)[0].run(seen.append)
    assert [progress.num_tokens for progress in seen] == list(range(128, 6401, 128))
    assert seen[0].cross_entropy > 3.0
    assert seen[-1].cross_entropy < 0.8 * seen[0].cross_entropy


def test_it_goes_on_after_an_end_as_if_there_had_been_none(tmp_path: Path) -> None:
    whole, expected = training(tmp_path / "whole")
    whole.run(lambda _: None)

    def stop_at_20(progress: Progress) -> None:
        if progress.step == 20:
            raise StopHereError

    with pytest.raises(StopHereError):
        training(tmp_path / "cut")[0].run(stop_at_20)
    resumed, student = training(tmp_path / "cut", seed=5)
    steps: list[int] = []
    resumed.run(lambda progress: steps.append(progress.step))
    assert steps[0] == 20  # the last snapshot was made behind step 19
    assert all(torch.equal(student.weights[name], expected.weights[name]) for name in expected.weights)


def test_a_training_that_is_done_does_nothing_more(tmp_path: Path) -> None:
    training(tmp_path)[0].run(lambda _: None)
    steps: list[Progress] = []
    training(tmp_path)[0].run(steps.append)
    assert steps == []


def test_a_student_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    training_of_teacher, teacher = training(tmp_path / "teacher", seed=1)
    training_of_teacher.run(lambda _: None)
    seen: list[Progress] = []
    training(tmp_path / "student", teacher)[0].run(seen.append)
    assert seen[-1].divergence < 0.7 * seen[0].divergence


def test_ctrl_c_keeps_what_was_learned(tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training(tmp_path)[0].run(interrupt)
    state = load_snapshot(tmp_path)
    assert state is not None
    assert state["step"] == 3


def test_a_full_disk_is_told_and_the_last_snapshot_kept(tmp_path: Path) -> None:
    save_snapshot(tmp_path, {"step": 1})
    (tmp_path / "training.safetensors.new").symlink_to("/dev/full")
    with pytest.raises(ConfigurationError, match=r"cannot be written: .*; the last one is kept"):
        save_snapshot(tmp_path, {"step": 2, "weights": torch.zeros(100_000)})
    assert load_snapshot(tmp_path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["training.safetensors"]


def test_a_damaged_snapshot_is_told(tmp_path: Path) -> None:
    (tmp_path / "training.safetensors").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(ConfigurationError, match=r"training\.safetensors: not a training's state"):
        training(tmp_path)


def test_the_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    training(tmp_path)[0].save()
    state = load_snapshot(tmp_path)
    assert state is not None
    state["weights"]["model.norm.weight"] = torch.zeros(99)
    save_snapshot(tmp_path, state)
    with pytest.raises(ConfigurationError, match=r"another model \(model\.norm\.weight\)"):
        training(tmp_path)


def test_rates_rise_stay_and_fall_to_nothing() -> None:
    plan = Plan(num_tokens=1000, warmup_share=0.1, decay_share=0.2)
    assert rate_share(0.0, plan) < 0.02
    assert rate_share(0.1, plan) == rate_share(0.7, plan) == 1.0
    assert rate_share(0.9, plan) == pytest.approx(0.5)
    assert rate_share(1.0, plan) == 0.0
