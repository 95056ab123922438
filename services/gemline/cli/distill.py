"""`gemline distill`: makes a small Gemma 2 model from a large one and text, as a draft model or for little memory."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gemline.distill.training import Progress

_LINE_EVERY_S = 10.0


def distill(
    teacher: Annotated[Path, typer.Option(help="directory of a Gemma 2 checkpoint")],
    student_config: Annotated[Path, typer.Option(help="config.json of the student; same vocabulary as the teacher")],
    text: Annotated[list[Path], typer.Option(help="UTF-8 files; <bos> divides documents; may be repeated")],
    out: Annotated[Path, typer.Option(help="directory for the student; a run that ended early goes on from there")],
    tokens: Annotated[int, typer.Option(min=1, help="how many to train on")] = 10_000_000,
    batch_tokens: Annotated[int, typer.Option(min=1, help="of one step")] = 4096,
    max_length: Annotated[int, typer.Option(min=2, help="longest piece of a document, in tokens")] = 1024,
    share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="of the teacher in the loss; the rest is the text's own tokens")
    ] = 0.5,
    temperature: Annotated[float, typer.Option(min=0.1, help="by which both distributions are softened")] = 1.5,
    seed: Annotated[int, typer.Option(help="of the first weights and the order of the text")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto")] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="fuse layers with torch.compile (C++ compiler)")] = False,
) -> None:
    """Train a student of any Gemma 2 shape on text and on what a teacher of the same vocabulary makes of it."""
    from gemline.distill.job import Job, run_job
    from gemline.distill.objective import Mix

    mix = Mix(share, temperature)
    job = Job(teacher, student_config, tuple(text), out, tokens, batch_tokens, max_length, mix, seed, device, compiled)
    line = _ProgressLine()
    run_job(job, line.show)
    line.end()
    print(f"the student is in {out}: gemline up --model {out}")


class _ProgressLine:
    """One line that is written over on a terminal, or now and then a new one elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._shown_s = 0.0
        self._begun: tuple[float, int] | None = None

    def show(self, progress: "Progress") -> None:
        """What share is done, the losses, the speed and the time that is left."""
        now_s = time.monotonic()
        self._begun = self._begun or (now_s, progress.num_tokens)
        is_last = progress.num_tokens >= progress.of_tokens
        if not is_last and now_s - self._shown_s < (0.2 if self._is_terminal else _LINE_EVERY_S):
            return
        self._shown_s = now_s
        speed = (progress.num_tokens - self._begun[1]) / max(1e-9, now_s - self._begun[0])
        left_min = max(0, progress.of_tokens - progress.num_tokens) / speed / 60 if speed else float("nan")
        line = (
            f"{100 * progress.num_tokens / progress.of_tokens:5.1f} %  step {progress.step}  "
            f"cross entropy {progress.cross_entropy:.3f}  divergence {progress.divergence:.3f}  "
            f"{speed:.0f} tokens/s  {left_min:.0f} min left"
        )
        print(f"\r{line:<100}" if self._is_terminal else line, end="" if self._is_terminal else "\n", file=sys.stderr)

    def end(self) -> None:
        """Leaves the line."""
        if self._is_terminal:
            print(file=sys.stderr)
