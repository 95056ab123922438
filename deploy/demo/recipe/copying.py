"""Repeating what was said, to the letter: what the model learns to look back with."""

from recipe.exchange import Exchange, Talk
from recipe.splits import a_code, a_name
from recipe.words import ADJECTIVES, ANIMALS, CAPITALS, CITIES, COLOURS, FOODS, FRUITS, JOBS, PLACES, THINGS, VERBS

_KINDS = (ADJECTIVES, ANIMALS, tuple(CAPITALS.values()), CITIES, COLOURS, FOODS, FRUITS, JOBS, PLACES, THINGS, VERBS)


def repeat(talk: Talk) -> Exchange:
    """A few words, names or codes; now and then many."""
    count = talk.random.randrange(1, 10) if talk.random.random() < 0.8 else talk.random.randrange(10, 30)
    text = " ".join(_a_word(talk) for _ in range(count))
    question = talk.pick(
        "Repeat: {t}", "Repeat after me: {t}", "Copy this: {t}", "Say: {t}", "Please repeat: {t}", "Echo: {t}"
    )
    return Exchange("copy", question.format(t=text), text)


def _a_word(talk: Talk) -> str:
    chance = talk.random.random()
    if chance < 0.2:
        return a_code(talk.random, held_out=talk.held_out)
    if chance < 0.6:
        return a_name(talk.random, held_out=talk.held_out)
    return talk.pick(*talk.random.choice(_KINDS))
