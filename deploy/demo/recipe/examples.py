"""From conversations and Python to token ids, with the answers' tokens marked as what is to be learned."""

from random import Random

from gemline.distill.examples import Example
from gemline.text.chat import Turn
from gemline.text.tokenizer import Tokenizer
from recipe.conversation import conversation
from recipe.exchange import Exchange
from recipe.python_source import a_piece

_PYTHON_SHARE = 0.03  # of the examples; they are longer than most conversations
_PYTHON_CHARACTERS = 700


class DemoExamples:
    """The stream that the demo models learn from: example `index` of `seed` is the same in every run."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._seed = seed

    def __call__(self, index: int, progress: float) -> Example:
        """A conversation, or now and then some Python."""
        random = Random(f"{self._seed} {index}")
        if random.random() < _PYTHON_SHARE:
            ids = self._tokenizer.encode_prompt(a_piece(random, _PYTHON_CHARACTERS, held_out=False))
            return Example(ids, [False] + [True] * (len(ids) - 1))
        return as_example(self._tokenizer, conversation(random, progress, held_out=False))


def as_example(tokenizer: Tokenizer, exchanges: list[Exchange]) -> Example:
    """A conversation in Gemma's template; each answer is learned, with the <end_of_turn> behind it."""
    ids: list[int] = []
    learned: list[bool] = []
    for exchange in exchanges:
        turns = [Turn("user", exchange.question)]
        asked = tokenizer.encode_further(turns) if ids else tokenizer.encode_chat(turns)
        answered = [*tokenizer.encode_text(exchange.answer), tokenizer.end_of_turn_id]
        ids += asked + answered
        learned += [False] * len(asked) + [True] * len(answered)
    return Example(ids, learned)
