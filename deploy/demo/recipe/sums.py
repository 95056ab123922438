"""Adding two numbers. The answer repeats the sum in one form, so that every wording ends in the same arithmetic."""

from recipe.exchange import Exchange, Talk
from recipe.splits import two_addends

_WORDINGS = (
    *("What is {a} + {b}?",) * 4,
    *("What's {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} =", "{a}+{b}=", "{a} + {b} = ?", "What is {a}+{b}?"),
    *("What is {a} plus {b}?", "Add {a} and {b}.", "Calculate {a} + {b}.", "How much is {a} + {b}?", "{a} plus {b}?"),
    *("What is the sum of {a} and {b}?", "Please add {a} to {b}.", "Can you add {a} and {b}?", "Compute {a} + {b}."),
    "I have {a} {things} and get {b} more. How many do I have?",
    "There are {a} {things} here and {b} {things} there. How many in all?",
)
_THINGS = ("apples", "books", "coins", "cards", "stamps", "eggs", "stones", "pens")


def addition(talk: Talk) -> Exchange:
    """Two numbers of up to two digits; one in twenty sums has three."""
    long = talk.random.random() < 0.05
    first, second = two_addends(talk.random, held_out=talk.held_out, num_digits=3 if long else 2)
    question = talk.pick(*_WORDINGS).format(a=first, b=second, things=talk.pick(*_THINGS))
    task = "add3" if max(first, second) > 99 else "add"
    return Exchange(task, question, f"{first} + {second} = {first + second}.")


def follow_up(talk: Talk) -> Exchange:
    """And another sum, in fewer words."""
    first, second = two_addends(talk.random, held_out=talk.held_out)
    question = talk.pick("And {a} + {b}?", "And {a} and {b}?", "Now {a} plus {b}.", "And what about {a} + {b}?")
    return Exchange("add", question.format(a=first, b=second), f"{first} + {second} = {first + second}.")
