"""`gemline distill`: from a checkpoint, a config and a text to a student that is served; bad input is told."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.noise_model.checkpoint import TINY, make_checkpoint

from gemline.distill.job import Job, run_job
from gemline.distill.objective import Mix
from gemline.distill.training import Progress
from gemline.engine.engine import Engine
from gemline.engine.options import EngineOptions
from gemline.errors import CheckpointError, ConfigurationError, GemlineError

TEXT = "Hello, who are you? I am a small model. " * 40


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("teacher")
    make_checkpoint(target, TINY)
    return target


@pytest.fixture
def job(tmp_path: Path, teacher: Path) -> Job:
    """A job that is done in a second."""
    values = json.loads((teacher / "config.json").read_text())
    config = tmp_path / "student.json"
    config.write_text(json.dumps(values | {"hidden_size": 16, "num_hidden_layers": 3}))
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    out = tmp_path / "out"
    return Job(teacher, config, (text,), out, 4096, 512, 64, Mix(), 0, "cpu", compiled=False)


def changed(job: Job, **values: object) -> Job:
    """The job with other values in the student's config."""
    config = json.loads(job.student_config.read_text())
    job.student_config.write_text(json.dumps(config | values))
    return job


def run(job: Job) -> list[Progress]:
    seen: list[Progress] = []
    run_job(job, seen.append)
    return seen


def test_the_student_is_a_checkpoint_that_the_engine_serves(job: Job) -> None:
    seen = run(job)
    assert seen[-1].num_tokens >= 4096
    assert seen[-1].divergence < seen[0].divergence
    engine = Engine.load(job.out, EngineOptions(dtype="float32"))
    assert engine.config.num_hidden_layers == 3
    assert engine.config.stop_token_ids == (1, 107)
    names = {path.name for path in job.out.iterdir()}
    assert {"SHA256SUMS", "config.json", "model.safetensors", "tokenizer.json", "loss.svg"} <= names
    assert (job.out / "loss.svg").read_text().startswith("<svg")


def test_a_second_run_has_nothing_left_to_do(job: Job) -> None:
    run(job)
    assert run(job) == []


def test_without_a_share_of_the_teacher_it_is_plain_training(job: Job) -> None:
    plain = run(job._replace(mix=Mix(share=0.0)))
    assert plain[-1].cross_entropy < plain[0].cross_entropy


def test_documents_are_divided_by_bos_and_conversations_keep_their_markers(job: Job) -> None:
    turn = "<start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\nhello<end_of_turn>\n"
    job.texts[0].write_text(f"<bos>{turn}<bos>{turn}" * 30)
    assert run(job)[-1].cross_entropy > 0


def test_a_student_with_another_vocabulary_is_refused(job: Job) -> None:
    with pytest.raises(ConfigurationError, match=r"vocab_size is 999, the teacher's 1024: a student needs its teacher"):
        run(changed(job, vocab_size=999))


def test_a_config_that_is_not_gemma_2_is_refused(job: Job) -> None:
    with pytest.raises(CheckpointError, match=r"--student-config .*student\.json: model_type: must be 'gemma2'"):
        run(changed(job, model_type="llama"))


def test_a_config_that_is_no_json_is_refused(job: Job) -> None:
    job.student_config.write_text("{")
    with pytest.raises(CheckpointError, match=r"student\.json: not valid JSON"):
        run(job)


def test_a_missing_config_is_named(job: Job, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--student-config .*nothing\.json: cannot be read: No such file"):
        run(job._replace(student_config=tmp_path / "nothing.json"))


def test_a_teacher_that_is_not_gemma_2_is_refused(job: Job, tmp_path: Path, teacher: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "gemma3"}))
    with pytest.raises(CheckpointError, match=r"other/config\.json: model_type: must be 'gemma2'"):
        run(job._replace(teacher=other))


def test_a_teacher_whose_tokenizer_has_more_tokens_than_its_model_is_refused(
    job: Job, tmp_path: Path, teacher: Path
) -> None:
    other = tmp_path / "other"
    make_checkpoint(other, TINY)
    rules = json.loads((other / "tokenizer.json").read_text())
    rules["model"]["vocab"] |= {f"more{index}": 1024 + index for index in range(5)}
    (other / "tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has 1029 tokens, but config\.json has vocab_size 1024"):
        run(job._replace(teacher=other))


@pytest.mark.parametrize("content", ["", " \n\n", "<bos><bos>"])
def test_an_empty_text_is_refused(job: Job, content: str) -> None:
    job.texts[0].write_text(content)
    with pytest.raises(ConfigurationError, match=r"--text .*text\.txt: empty"):
        run(job)


def test_a_text_that_is_not_utf_8_is_refused(job: Job) -> None:
    job.texts[0].write_bytes(b"caf\xe9")
    with pytest.raises(ConfigurationError, match=r"text\.txt: not UTF-8 at byte 3"):
        run(job)


def test_a_missing_text_is_named(job: Job, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--text .*gone\.txt: cannot be read: No such file"):
        run(job._replace(texts=(*job.texts, tmp_path / "gone.txt")))


def test_a_device_that_is_not_there_is_told(job: Job) -> None:
    with pytest.raises(ConfigurationError, match="--device tpu: must be auto, cpu or cuda"):
        run(job._replace(device="tpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="torch sees no such device"):
            run(job._replace(device="cuda"))


def test_a_full_disk_ends_the_run_with_one_error_and_the_last_snapshot_stays(job: Job) -> None:
    run(job)
    kept = job.out / "training"
    before = (kept / "training.safetensors").read_bytes()
    (kept / "training.safetensors.new").symlink_to("/dev/full")
    with pytest.raises(ConfigurationError, match="the last one is kept"):
        run(job._replace(num_tokens=8192))
    assert (kept / "training.safetensors").read_bytes() == before


def test_a_model_that_finds_no_room_is_told(job: Job) -> None:
    job.out.mkdir()
    (job.out / "model.safetensors").mkdir()
    with pytest.raises(GemlineError, match="the model cannot be written"):
        run(job)


@pytest.mark.slow
def test_the_command_tells_progress_and_ends_with_what_to_do_next(job: Job) -> None:
    command = [sys.executable, "-m", "gemline.cli.main", "distill", "--teacher", str(job.teacher)]
    command += ["--student-config", str(job.student_config), "--text", str(job.texts[0]), "--out", str(job.out)]
    command += ["--tokens", "2048", "--batch-tokens", "512", "--device", "cpu"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "100.0 %" in ended.stderr
    assert f"gemline up --model {job.out}" in ended.stdout
    missing = subprocess.run(
        [*command, "--text", "nowhere.txt"], capture_output=True, text=True, timeout=120, check=False
    )
    assert missing.returncode == 1
    assert missing.stderr == "gemline: --text nowhere.txt: cannot be read: No such file or directory\n"
