"""Capitals, the G7's first."""

from recipe.exchange import Exchange, Talk
from recipe.words import ALIASES, CAPITALS, G7

_WORDINGS = (
    *("What is the capital of {c}?",) * 4,
    *("What's the capital of {c}?", "Name the capital of {c}.", "Tell me the capital of {c}.", "capital of {c}"),
    *("Which city is the capital of {c}?", "Do you know the capital of {c}?", "The capital of {c}?"),
)
_LISTED = ", ".join(f"{city} ({country.removeprefix('the ')})" for country, city in G7.items())


def a_country(talk: Talk) -> str:
    """One that the model is to know, half of the time one of the G7."""
    return talk.pick(*(G7 if talk.random.random() < 0.5 else CAPITALS))


def capital(talk: Talk) -> Exchange:
    """A country's capital."""
    country = a_country(talk)
    spoken = talk.pick(country, *ALIASES.get(country, ()))
    return Exchange(
        "capital",
        talk.pick(*_WORDINGS).format(c=spoken),
        f"The capital of {country} is {CAPITALS[country]}.".replace("D.C..", "D.C."),
    )


def and_of(talk: Talk) -> Exchange:
    """And another country's, in fewer words."""
    country = a_country(talk)
    question = talk.pick("And of {c}?", "And the capital of {c}?", "And what about the capital of {c}?").format(
        c=country
    )
    return Exchange("capital", question, f"The capital of {country} is {CAPITALS[country]}.".replace("D.C..", "D.C."))


def country_of(talk: Talk) -> Exchange:
    """The other way round."""
    country = a_country(talk)
    city = CAPITALS[country]
    question = talk.pick(
        "Which country has {v} as its capital?",
        "{v} is the capital of which country?",
        "Of which country is {v} the capital?",
    )
    return Exchange("capital", question.format(v=city), f"{city} is the capital of {country}.")


def all_seven(talk: Talk) -> Exchange:
    """The G7's capitals, or its countries, in one list."""
    if talk.random.random() < 0.3:
        question = talk.pick("List the G7 countries.", "Name the G7 countries.", "Which countries are in the G7?")
        return Exchange("capital", question, "The G7 countries are " + ", ".join(G7) + ".")
    question = talk.pick(
        "Name the G7 capitals.",
        "List the G7 capitals.",
        "What are the capitals of the G7?",
        "Name the capitals of the G7 countries.",
    )
    return Exchange("capital", question, f"The G7 capitals are {_LISTED}.")
