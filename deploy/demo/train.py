"""Trains the demo models, one stage after the other, from where the last run ended.

    nice -n 19 setsid nohup .venv/bin/python deploy/demo/train.py >> ~/.cache/gemline/demo-training/log 2>&1 &

Ctrl-C, SIGTERM, SIGSTOP and the loss of power cost five minutes at most. `--only NAME` runs one stage.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait must not take the cores from others
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from recipe.examples import DemoExamples
from recipe.sizes import STAGES, Stage
from recipe.stage import config_of, export_stage, trained
from recipe.vocabulary import learn_vocabulary

from gemline.cache import cache_dir
from gemline.distill.curve import CurveFile
from gemline.distill.examples import Batcher
from gemline.distill.network import Network, fresh_weights
from gemline.distill.training import Plan, Progress, Training
from gemline.text.tokenizer import Tokenizer

_REPORT_EVERY = 20


def main() -> None:
    """Every stage that is not done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[stage.name for stage in STAGES])
    parser.add_argument("--out", type=Path, default=cache_dir() / "demo-training")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(arguments.out)
    try:
        for stage in STAGES:
            if arguments.only in (None, stage.name):
                _run(stage, arguments.out, tokenizer)
    except KeyboardInterrupt:
        sys.exit("stopped; what was learned is kept")


def _tokenizer(out: Path) -> Tokenizer:
    """Learned once, for it must stay what the snapshots were trained with."""
    path = out / "tokenizer.json"
    if not path.exists():
        path.write_text(learn_vocabulary().to_str(pretty=False), encoding="utf-8")
    return Tokenizer.load(path)


def _run(stage: Stage, out: Path, tokenizer: Tokenizer) -> None:
    config = config_of(stage)
    student = Network(config, fresh_weights(config, stage.seed), compiled=True)
    teacher = None if stage.teacher is None else trained(out, stage.teacher, compiled=True)
    plan = Plan(stage.num_tokens)
    batcher = Batcher(DemoExamples(tokenizer, stage.seed), plan.tokens_per_batch, config.max_position_embeddings)
    training = Training(out / stage.name, student, batcher, plan, teacher)
    curve = CurveFile(out / f"{stage.name}.tsv", _REPORT_EVERY)
    training.run(lambda progress: _report(stage, progress, curve))
    export_stage(out, stage.name)


def _report(stage: Stage, progress: Progress, curve: CurveFile) -> None:
    curve.add(progress)
    if progress.step % _REPORT_EVERY:
        return
    done = 100 * progress.num_tokens / progress.of_tokens
    clock = time.strftime("%H:%M:%S")
    sys.stdout.write(
        f"{clock} {stage.name} {done:5.1f} % step {progress.step} loss {progress.cross_entropy:.3f} "
        f"divergence {progress.divergence:.3f} {progress.tokens_per_s:.0f} tokens/s\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
