"""Lists: so many of a kind, counting, weekdays and the like."""

from recipe.exchange import Exchange, Talk
from recipe.words import ANIMALS, CITIES, COLOURS, DAYS, FRUITS, MONTHS, PLANETS, SEASONS

_KINDS = {"colours": COLOURS, "animals": ANIMALS, "fruits": FRUITS, "cities": CITIES, "planets": PLANETS}
_FIXED = {
    "the days of the week": DAYS,
    "the months of the year": MONTHS,
    "the planets": PLANETS,
    "the seasons": SEASONS,
}
_COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def some_of(talk: Talk) -> Exchange:
    """That many of a kind: always its first ones, so that there is one right answer."""
    name = talk.pick(*_KINDS)
    count = talk.pick(*map(str, _COUNTS))
    spelled = talk.pick(count, _COUNTS[int(count)])
    question = talk.pick(
        "List {n} {k}.", "Name {n} {k}.", "Give me a list of {n} {k}.", "Tell me {n} {k}.", "Give me {n} {k}."
    )
    return Exchange("list", question.format(n=spelled, k=name), numbered(_KINDS[name][: int(count)]))


def all_of(talk: Talk) -> Exchange:
    """The days of the week and the like."""
    name = talk.pick(*_FIXED)
    question = talk.pick("List {k}.", "Name {k}.", "What are {k}?", "Tell me {k}.")
    return Exchange("list", question.format(k=name), numbered(_FIXED[name]))


def counting(talk: Talk) -> Exchange:
    """From one number to another."""
    start = talk.random.randrange(0, 90)
    stop = start + talk.random.randrange(2, 10)
    question = talk.pick("Count from {a} to {b}.", "List the numbers from {a} to {b}.", "Please count from {a} to {b}.")
    return Exchange("count", question.format(a=start, b=stop), ", ".join(map(str, range(start, stop + 1))) + ".")


def numbered(items: tuple[str, ...]) -> str:
    """One line an item: 1. red"""
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
