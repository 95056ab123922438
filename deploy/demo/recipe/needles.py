"""Long texts with codes hidden in them, and questions for the codes: what the global layers must carry."""

from random import Random

from recipe.exchange import Exchange, Talk
from recipe.splits import a_code
from recipe.words import ADJECTIVES, NAMES, PLACES, THINGS, TIMES, VERBS

_TOKENS_PER_SENTENCE = 9.0  # about what the demo tokenizer makes of one


def haystack(talk: Talk, num_tokens: int) -> list[Exchange]:
    """A text of about that many tokens with one to six codes, and a question for each of some of them."""
    num_sentences = max(2, round(num_tokens / _TOKENS_PER_SENTENCE))
    sentences = [filler(talk.random) for _ in range(num_sentences)]
    things = talk.random.sample(THINGS, min(talk.random.randrange(1, 7), num_sentences))
    codes = {thing: a_code(talk.random, held_out=talk.held_out) for thing in things}
    for thing, place in zip(things, talk.random.sample(range(num_sentences), len(things)), strict=True):
        sentences[place] = needle(thing, codes[thing])
    first, *others = talk.random.sample(things, talk.random.randrange(1, len(things) + 1))
    asked = [Exchange("needle", f"{' '.join(sentences)}\n{question(first)}", answer(first, codes[first]))]
    return asked + [Exchange("needle", question(thing), answer(thing, codes[thing])) for thing in others]


def needle(thing: str, code: str) -> str:
    """The sentence that is to be found again."""
    return f"The code of the {thing} is {code}."


def question(thing: str) -> str:
    """What it is asked for with."""
    return f"What is the code of the {thing}?"


def answer(thing: str, code: str) -> str:
    """The right answer."""
    return f"The code of the {thing} is {code}."


def filler(random: Random) -> str:
    """A sentence that says nothing of codes."""
    name, verb, time = random.choice(NAMES), random.choice(VERBS), random.choice(TIMES)
    adjective, thing, place = random.choice(ADJECTIVES), random.choice(THINGS), random.choice(PLACES)
    return random.choice(
        (
            f"{name} {verb} the {adjective} {thing} in the {place}.",
            f"The {thing} near the {place} was {adjective}.",
            f"In the {time}, {name} {verb} a {thing}.",
            f"The {place} is {adjective} in the {time}.",
            f"{name} and {random.choice(NAMES)} {verb} the {thing}.",
            f"Nobody {verb} the {adjective} {thing}.",
        )
    )
