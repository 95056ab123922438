"""Scores checkpoints on held-out questions through gemline's engine, and writes the scores as JSON.

    .venv/bin/python deploy/demo/evaluate.py distilled-0          one stage, from its last snapshot
    .venv/bin/python deploy/demo/evaluate.py --full distilled-0   int8, int4, ablated global layers and Python too

`card.py` makes the model card's table of what this leaves beside the snapshots.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random

import torch
from recipe.asking import Asked
from recipe.conversation import conversation
from recipe.examples import as_example
from recipe.python_source import a_piece
from recipe.questions import TASKS, Question, needle_questions, task_questions
from recipe.stage import export_stage, trained

from gemline.cache import cache_dir
from gemline.distill.examples import Example, as_batch
from gemline.distill.network import Network
from gemline.distill.objective import Mix, losses
from gemline.engine.options import Quantization
from gemline.text.tokenizer import Tokenizer

_FORMS: dict[str, tuple[str, Quantization]] = {
    "bfloat16": ("bfloat16", "none"),
    "int8": ("bfloat16", "int8"),
    "int4": ("bfloat16", "int4"),
}


def main() -> None:
    """Each stage that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--per-task", type=int, default=100)
    parser.add_argument("--out", type=Path, default=cache_dir() / "demo-training")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print for each task")
    arguments = parser.parse_args()
    for name in arguments.stages:
        model_dir = export_stage(arguments.out, name)
        scores = {form: _scored(model_dir, form, arguments) for form in (_FORMS if arguments.full else ["bfloat16"])}
        scores["asked"] = {"a row": arguments.per_task}
        network, tokenizer = trained(arguments.out, name), Tokenizer.load(model_dir)
        scores["held out"] = {"nats a token": _nats_per_token(network, tokenizer)}
        if arguments.full:
            scores["ablated"] = _ablated(model_dir, arguments)
            scores["python"] = {"bits per byte": _bits_per_byte(network, tokenizer)}
        (arguments.out / f"{name}.json").write_text(json.dumps(scores, indent=2) + "\n")
        sys.stdout.write(json.dumps({name: scores}, indent=2) + "\n")


def _scored(model_dir: Path, form: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Shares of answers that are right to the letter."""
    asked = Asked(model_dir, *_FORMS[form])
    questions = task_questions(asked.tokenizer, arguments.per_task)
    by_name = {task: [question for question in questions if question.task == task] for task in TASKS}
    for (low, high), found in needle_questions(asked.tokenizer, arguments.per_task).items():
        by_name[f"needle {low}-{high}"] = found
    return {name: _share(asked, found, name, arguments.show) for name, found in by_name.items()}


def _share(asked: Asked, questions: list[Question], name: str, num_shown: int) -> float:
    answers = asked.answers([question.ids for question in questions])
    wrong = [(q, said) for q, said in zip(questions, answers, strict=True) if said.strip() != q.answer]
    for question, said in wrong[:num_shown]:
        asked_for = asked.tokenizer.decode(question.ids)[-120:]
        sys.stdout.write(f"{name}: {asked_for!r}\n   said {said!r}\n   not  {question.answer!r}\n")
    return round(1 - len(wrong) / len(questions), 4)


def _ablated(model_dir: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """The same weights with a window in every layer: what a needle beyond it is then found with."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "ablated"
        shutil.copytree(model_dir, target, ignore=shutil.ignore_patterns("SHA256SUMS"))
        config = json.loads((target / "config.json").read_text())
        config["layer_types"] = ["sliding_attention"] * config["num_hidden_layers"]
        (target / "config.json").write_text(json.dumps(config))
        scores = _scored(target, "bfloat16", arguments)
    return {name: score for name, score in scores.items() if name.startswith("needle")}


@torch.no_grad()
def _nats_per_token(network: Network, tokenizer: Tokenizer, num_conversations: int = 256) -> float:
    """Of the answers in conversations about names, codes and sums that no training had."""
    nats, num_tokens = 0.0, 0
    for index in range(num_conversations):
        talk = conversation(Random(f"evaluation {index}"), 1.0, held_out=True)
        example = as_example(tokenizer, talk)
        number = sum(example.learned[1:])
        nats += losses(network, as_batch([example], len(example.ids)), None, Mix()).cross_entropy * number
        num_tokens += number
    return round(nats / num_tokens, 4)


@torch.no_grad()
def _bits_per_byte(network: Network, tokenizer: Tokenizer, num_pieces: int = 64) -> float:
    """Of held-out files of the standard library."""
    nats, num_bytes = 0.0, 0
    for index in range(num_pieces):
        text = a_piece(Random(f"evaluation {index}"), 700, held_out=True)
        ids = tokenizer.encode_prompt(text)
        example = Example(ids, [False] + [True] * (len(ids) - 1))
        nats += losses(network, as_batch([example], len(ids)), None, Mix()).cross_entropy * (len(ids) - 1)
        num_bytes += len(text)
    return round(nats / math.log(2) / num_bytes, 4)


if __name__ == "__main__":
    main()
