"""One distillation from files to files: a teacher, a student's shape and text in, a served checkpoint out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from gemline.distill.curve import CurveFile, draw, read_curve
from gemline.distill.documents import Documents
from gemline.distill.examples import Batcher
from gemline.distill.export import export
from gemline.distill.network import Network, fresh_weights
from gemline.distill.objective import Mix
from gemline.distill.student import load_student_config, load_teacher
from gemline.distill.training import Plan, Progress, Training
from gemline.engine.config import Gemma2Config
from gemline.errors import ConfigurationError
from gemline.text.tokenizer import read_tokenizer_file


class Job(NamedTuple):
    """The options of `gemline distill`."""

    teacher: Path
    student_config: Path
    texts: tuple[Path, ...]
    out: Path
    num_tokens: int
    tokens_per_batch: int
    max_length: int
    mix: Mix
    seed: int
    device: str
    compiled: bool


def run_job(job: Job, report: Callable[[Progress], None]) -> None:
    """Trains, or goes on training, and writes the student with its curve (loss.svg) to `out`.

    Raises CheckpointError or ConfigurationError when something given is wrong or the disk is full; what was learned
    up to the last snapshot stays in `out`/training.
    """
    device = _device(job.device)
    teacher_config = Gemma2Config.load(job.teacher)
    config = load_student_config(job.student_config, teacher_config)
    teacher = load_teacher(job.teacher, device)
    max_length = min(job.max_length, config.max_position_embeddings, teacher_config.max_position_embeddings)
    documents = Documents(list(job.texts), teacher.tokenizer, max_length, job.seed)
    student = Network(config, fresh_weights(config, job.seed, device), compiled=job.compiled)
    plan = Plan(job.num_tokens, job.tokens_per_batch, mix=job.mix)
    batcher = Batcher(documents, job.tokens_per_batch, max_length)
    kept = job.out / "training"
    training = Training(kept, student, batcher, plan, teacher.network)
    curve = CurveFile(kept / "loss.tsv")
    training.save()  # a disk that cannot hold the state is told of now, not after the first minutes
    training.run(lambda progress: _both(report, curve.add, progress))
    values = json.loads(job.student_config.read_bytes())
    tokenizer = read_tokenizer_file(job.teacher)
    export(job.out, student.weights, values, list(teacher_config.stop_token_ids), tokenizer)
    (job.out / "loss.svg").write_text(draw({"student": read_curve(kept / "loss.tsv")}))


def _both(report: Callable[[Progress], None], note: Callable[[Progress], None], progress: Progress) -> None:
    report(progress)
    note(progress)


def _device(asked: str) -> str:
    has_gpu = torch.cuda.is_available()
    if asked == "auto":
        return "cuda" if has_gpu else "cpu"
    if asked not in ("cpu", "cuda"):
        raise ConfigurationError(f"--device {asked}: must be auto, cpu or cuda")
    if asked == "cuda" and not has_gpu:
        raise ConfigurationError("--device cuda: torch sees no such device")
    return asked
