"""JSON when it is asked for."""

import json

from recipe.capitals import a_country
from recipe.exchange import Exchange, Talk
from recipe.facts import a_value
from recipe.splits import two_addends
from recipe.words import CAPITALS, COLOURS, DAYS, FRUITS

_AS_JSON = ("as JSON", "in JSON", "as a JSON object")
_KEYS = ("name", "city", "age", "colour", "job", "pet", "food", "code")


def a_person(talk: Talk) -> Exchange:
    """An object of keys and values that the question names."""
    keys = ["name", *talk.random.sample(_KEYS[1:], talk.random.choice((1, 1, 2, 3)))]
    values = {key: a_value(talk, key) for key in keys}
    listed = [f"{key} {value}" for key, value in values.items()]
    said = " and ".join([", ".join(listed[:-1]), listed[-1]])
    question = talk.pick(
        f"Give me a JSON object with {said}.",
        f"Return JSON with {said}.",
        f"Write a JSON object with {said}.",
        f"Make JSON: {said}",
        f"Put this into JSON: {said}",
        f"Answer in JSON: {said}",
    )
    return Exchange("json", question, _dumped(values))


def what_you_know(talk: Talk) -> Exchange:
    """What the user has told of themselves."""
    if not talk.facts:
        return a_person(talk)
    question = talk.pick("What do you know about me", "Tell me what you know about me", "Give me my facts")
    return Exchange("json", f"{question} {talk.pick(*_AS_JSON)}.", _dumped(talk.facts))


def a_capital(talk: Talk) -> Exchange:
    """A capital, as JSON."""
    country = a_country(talk)
    how = talk.pick("Answer in JSON.", "Answer as JSON.", "Return JSON.", "Reply in JSON.")
    answer = {"country": country.removeprefix("the "), "capital": CAPITALS[country]}
    question = talk.pick(
        f"What is the capital of {country}? {how}", f"Give me the capital of {country} {talk.pick(*_AS_JSON)}."
    )
    return Exchange("json", question, _dumped(answer))


def a_sum(talk: Talk) -> Exchange:
    """A sum, as JSON."""
    first, second = two_addends(talk.random, held_out=talk.held_out)
    how = talk.pick("Answer in JSON.", "Answer as JSON.", "Return JSON.", "Reply in JSON.")
    return Exchange(
        "json", f"What is {first} + {second}? {how}", _dumped({"a": first, "b": second, "sum": first + second})
    )


def a_list(talk: Talk) -> Exchange:
    """Some of a kind, as a JSON list."""
    name, items = talk.random.choice((("colours", COLOURS), ("fruits", FRUITS), ("days", DAYS)))
    count = talk.random.randrange(2, 6)
    question = talk.pick("Give me a JSON list of {n} {k}.", "List {n} {k} in JSON.", "{n} {k} as a JSON list.")
    return Exchange("json", question.format(n=count, k=name), json.dumps(items[:count]))


def _dumped(values: dict[str, str] | dict[str, int] | dict[str, str | int]) -> str:
    return json.dumps({key: int(value) if str(value).isdigit() else value for key, value in values.items()})
