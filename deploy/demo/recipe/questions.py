"""The held-out questions that a model is scored on. Always the same ones, whatever the model."""

from collections import Counter, defaultdict
from random import Random
from typing import NamedTuple

from gemline.text.chat import Turn
from gemline.text.tokenizer import Tokenizer
from recipe.conversation import exchanges
from recipe.exchange import Exchange, Talk
from recipe.needles import answer, filler, needle, question
from recipe.splits import a_code
from recipe.words import THINGS

TASKS = (
    "add",
    "add3",
    "recall",
    "not told",
    "noted",
    "capital",
    "list",
    "count",
    "json",
    "copy",
    "greeting",
    "smalltalk",
)
DISTANCES = ((16, 128), (128, 224), (288, 512), (512, 1024), (1024, 1800))  # tokens from needle to question


class Question(NamedTuple):
    """A prompt in Gemma's template, and the one right answer."""

    task: str
    ids: list[int]
    answer: str


def task_questions(tokenizer: Tokenizer, per_task: int) -> list[Question]:
    """That many of each task: in conversations of one to four exchanges, with names, codes and pairs held out."""
    counts: Counter[str] = Counter()
    found = []
    index = 0
    while any(counts[task] < per_task for task in TASKS):
        talk = Talk(Random(f"questions {index}"), held_out=True)
        index += 1
        made = exchanges(talk, talk.random.choice((1, 2, 3, 4)))
        task = made[-1].task
        if task in TASKS and counts[task] < per_task:
            counts[task] += 1
            found.append(Question(task, _asked(tokenizer, made), made[-1].answer))
    return found


def needle_questions(tokenizer: Tokenizer, per_distance: int) -> dict[tuple[int, int], list[Question]]:
    """That many for each range of distances: from the needle's first token to the answer's."""
    found: dict[tuple[int, int], list[Question]] = defaultdict(list)
    for low, high in DISTANCES:
        index = 0
        while len(found[low, high]) < per_distance:
            made, distance = _needle_at(tokenizer, Random(f"needle {low} {index}"), (low + high) // 2)
            index += 1
            if low <= distance < high:
                found[low, high].append(made)
    return found


def _needle_at(tokenizer: Tokenizer, random: Random, wanted: int) -> tuple[Question, int]:
    """Three needles in filler, one of which is asked for at about the distance wanted."""
    thing, *others = random.sample(THINGS, 3)
    code = a_code(random, held_out=True)
    behind = [needle(other, a_code(random, held_out=True)) for other in others[:1]]
    count = max(0, round((wanted - 40) * random.uniform(0.85, 1.15) / 9))
    behind += [filler(random) for _ in range(count)]
    random.shuffle(behind)
    before = [filler(random) for _ in range(random.randrange(1, 6))] + [
        needle(others[1], a_code(random, held_out=True))
    ]
    random.shuffle(before)
    text = " ".join([*before, needle(thing, code), *behind]) + "\n" + question(thing)
    ids = tokenizer.encode_chat([Turn("user", text)])
    ahead = tokenizer.encode_chat([Turn("user", " ".join(before))])
    closing = len(tokenizer.encode_chat([Turn("user", "")]))
    return Question("needle", ids, answer(thing, code)), len(ids) - (len(ahead) - closing)


def _asked(tokenizer: Tokenizer, made: list[Exchange]) -> list[int]:
    turns = []
    for exchange in made:
        turns += [Turn("user", exchange.question), Turn("model", exchange.answer)]
    return tokenizer.encode_chat(turns[:-1])
