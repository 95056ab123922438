"""Facts that the user tells, and asks for again: about themselves and about others."""

from typing import NamedTuple

from recipe.exchange import Exchange, Talk
from recipe.splits import a_code, a_name
from recipe.words import ANIMALS, CITIES, COLOURS, FOODS, JOBS


class _Kind(NamedTuple):
    """`{v}` is the value, `{n}` a person's name."""

    told: tuple[str, ...]
    noted: str
    asked: tuple[str, ...]
    answer: str
    unknown: str
    other_told: str
    other_asked: str
    other_answer: str


_KINDS = {
    "name": _Kind(
        (
            "My name is {v}.",
            "My name is {v}.",
            "I am {v}.",
            "I'm {v}.",
            "Call me {v}.",
            "Hi, I am {v}.",
            "Hello! My name is {v}.",
        ),
        "Nice to meet you, {v}!",
        (
            "What is my name?",
            "What is my name?",
            "What's my name?",
            "Who am I?",
            "Do you remember my name?",
            "Do you know my name?",
            "Say my name.",
        ),
        "Your name is {v}.",
        "You have not told me your name.",
        "",
        "",
        "",
    ),
    "city": _Kind(
        ("I live in {v}.", "My home is in {v}.", "I am from {v}.", "My city is {v}."),
        "{v} sounds like a nice place.",
        ("Where do I live?", "Which city do I live in?", "Where is my home?", "What is my city?"),
        "You live in {v}.",
        "You have not told me where you live.",
        "{n} lives in {v}.",
        "Where does {n} live?",
        "{n} lives in {v}.",
    ),
    "colour": _Kind(
        (
            "My favourite colour is {v}.",
            "My favorite color is {v}.",
            "I like the colour {v}.",
            "I love {v}, it is my favourite colour.",
        ),
        "I will remember that you like {v}.",
        (
            "What is my favourite colour?",
            "What is my favorite color?",
            "Which colour do I like?",
            "What colour do I like?",
        ),
        "Your favourite colour is {v}.",
        "You have not told me your favourite colour.",
        "{n} likes the colour {v}.",
        "Which colour does {n} like?",
        "{n} likes {v}.",
    ),
    "age": _Kind(
        ("I am {v} years old.", "My age is {v}.", "I'm {v} years old."),
        "I will remember that you are {v}.",
        ("How old am I?", "What is my age?", "Do you know how old I am?"),
        "You are {v} years old.",
        "You have not told me your age.",
        "{n} is {v} years old.",
        "How old is {n}?",
        "{n} is {v} years old.",
    ),
    "pet": _Kind(
        ("I have a {v}.", "My pet is a {v}.", "At home I have a {v}."),
        "I hope your {v} is well.",
        ("What pet do I have?", "Which animal do I have?", "What is my pet?"),
        "You have a {v}.",
        "You have not told me about a pet.",
        "{n} has a {v}.",
        "Which pet does {n} have?",
        "{n} has a {v}.",
    ),
    "food": _Kind(
        ("My favourite food is {v}.", "I like to eat {v}.", "I love {v}."),
        "I will remember that you like {v}.",
        ("What is my favourite food?", "What do I like to eat?", "Which food do I like?"),
        "Your favourite food is {v}.",
        "You have not told me your favourite food.",
        "{n} likes to eat {v}.",
        "What does {n} like to eat?",
        "{n} likes {v}.",
    ),
    "job": _Kind(
        ("I work as a {v}.", "I am a {v}.", "My job is {v}."),
        "I will remember that you are a {v}.",
        ("What is my job?", "What do I work as?", "What do I do for a living?"),
        "You are a {v}.",
        "You have not told me your job.",
        "{n} works as a {v}.",
        "What is the job of {n}?",
        "{n} is a {v}.",
    ),
    "code": _Kind(
        ("My secret code is {v}.", "My password is {v}.", "The secret word is {v}.", "Remember this code: {v}."),
        "I will remember {v}.",
        ("What is my secret code?", "What is my password?", "What is the secret word?", "Which code did I give you?"),
        "It is {v}.",
        "You have not told me a code.",
        "The code of {n} is {v}.",
        "What is the code of {n}?",
        "The code of {n} is {v}.",
    ),
}
_VALUES = {"city": CITIES, "colour": COLOURS, "pet": ANIMALS, "food": FOODS, "job": JOBS}


def a_value(talk: Talk, kind: str) -> str:
    """A value for that kind of fact; names and codes are of the talk's split."""
    if kind == "name":
        return a_name(talk.random, held_out=talk.held_out)
    if kind == "code":
        return a_code(talk.random, held_out=talk.held_out)
    return str(talk.random.randrange(5, 99)) if kind == "age" else talk.pick(*_VALUES[kind])


def _a_kind(talk: Talk) -> str:
    return "name" if talk.random.random() < 0.45 else talk.pick(*_KINDS)


def tell(talk: Talk) -> Exchange:
    """The user tells a fact; a later one of the same kind replaces it."""
    name = _a_kind(talk)
    kind, value = _KINDS[name], a_value(talk, name)
    told = talk.pick(*kind.told).format(v=value)
    if name in talk.facts and talk.random.random() < 0.7:
        told = talk.pick("Actually, {t}", "No, {t}", "Sorry, {t}").format(
            t=told[0].lower() + told[1:] if not told.startswith("I") else told
        )
    talk.facts[name] = value
    return Exchange("noted", told, kind.noted.format(v=value))


def ask(talk: Talk) -> Exchange:
    """The user asks for a fact, mostly one that was told."""
    known = sorted(talk.facts)
    name = talk.pick(*known) if known and talk.random.random() < 0.85 else _a_kind(talk)
    kind = _KINDS[name]
    question = talk.pick(*kind.asked)
    if name not in talk.facts:
        return Exchange("not told", question, kind.unknown)
    return Exchange("recall", question, kind.answer.format(v=talk.facts[name]))


def tell_and_ask(talk: Talk) -> Exchange:
    """Both in one message."""
    told = tell(talk)
    asked = ask(talk)
    return Exchange(asked.task, f"{told.question} {asked.question}", asked.answer)


def tell_of_others(talk: Talk) -> Exchange:
    """One to three facts about other people."""
    sentences = []
    for _ in range(talk.random.choice((1, 1, 2, 3))):
        name = talk.pick(*(name for name in _KINDS if name != "name"))
        person, value = a_name(talk.random, held_out=talk.held_out), a_value(talk, name)
        talk.others.setdefault(person, {})[name] = value
        sentences.append(_KINDS[name].other_told.format(n=person, v=value))
    return Exchange("noted", " ".join(sentences), talk.pick("I will remember that."))


def ask_of_others(talk: Talk) -> Exchange:
    """A fact about somebody who was spoken of."""
    if not talk.others:
        return tell_of_others(talk)
    person = talk.pick(*sorted(talk.others))
    name = talk.pick(*sorted(talk.others[person]))
    kind, value = _KINDS[name], talk.others[person][name]
    return Exchange("recall", kind.other_asked.format(n=person), kind.other_answer.format(n=person, v=value))
