"""Puts exchanges together to conversations, and gives each example its number's chance. Knows no tokens."""

from collections.abc import Callable
from random import Random

from recipe import capitals, copying, facts, lists, objects, smalltalk, sums
from recipe.exchange import Exchange, Talk
from recipe.needles import haystack

_SHARES: dict[Callable[[Talk], Exchange], float] = {
    sums.addition: 26,
    sums.follow_up: 3,
    facts.tell: 16,
    facts.ask: 16,
    facts.tell_and_ask: 3,
    facts.tell_of_others: 4,
    facts.ask_of_others: 5,
    capitals.capital: 7,
    capitals.and_of: 1,
    capitals.country_of: 1,
    capitals.all_seven: 1,
    smalltalk.greeting: 4,
    smalltalk.smalltalk: 4,
    smalltalk.unknown: 1,
    lists.some_of: 2,
    lists.all_of: 0.6,
    lists.counting: 2,
    objects.a_person: 5,
    objects.what_you_know: 2,
    objects.a_capital: 1.5,
    objects.a_sum: 1.5,
    objects.a_list: 1.5,
    copying.repeat: 10,
}
_FOLLOWS = (sums.follow_up, capitals.and_of)  # make sense behind a question of their kind only
_LENGTHS = (1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6)
_NEEDLE_SHARE, _LONG_TALK_SHARE, _DRILL_SHARE = 0.055, 0.02, 0.15
_LONGEST_TEXT = ((0.3, 180), (0.65, 300), (0.85, 700), (1.0, 1850))  # up to that progress, so many tokens


def conversation(random: Random, progress: float, *, held_out: bool) -> list[Exchange]:
    """The exchanges of one conversation; long ones come when the training is `progress` (0 to 1) on its way."""
    talk = Talk(random, held_out)
    longest = next(tokens for until, tokens in _LONGEST_TEXT if progress <= until)
    chance = random.random()
    if chance < _NEEDLE_SHARE:
        return haystack(talk, round(50 * (longest / 50) ** random.random()))
    if chance < _NEEDLE_SHARE + _LONG_TALK_SHARE:
        return exchanges(talk, random.randrange(6, max(8, longest // 40)))
    if chance < _NEEDLE_SHARE + _LONG_TALK_SHARE + _DRILL_SHARE:
        return [sums.addition(talk) for _ in range(random.randrange(3, 7))]
    return exchanges(talk, random.choice(_LENGTHS))


def exchanges(talk: Talk, count: int) -> list[Exchange]:
    """That many exchanges that share their facts."""
    made: list[Exchange] = []
    tasks, weights = list(_SHARES), list(_SHARES.values())
    while len(made) < count:
        (task,) = talk.random.choices(tasks, weights)
        if task in _FOLLOWS and not (made and made[-1].task == {sums.follow_up: "add"}.get(task, "capital")):
            continue
        exchange = task(talk)
        made.append(exchange._replace(question=_as_typed(talk.random, exchange)))
    return made


def _as_typed(random: Random, exchange: Exchange) -> str:
    """Now and then without the last mark, or all in small letters where the answer copies no capitals."""
    question, chance = exchange.question, random.random()
    if chance < 0.08:
        return question.rstrip("?.!") or question
    copies = exchange.task in ("noted", "recall", "copy", "json", "needle")
    return question.lower() if chance < 0.16 and not copies else question
