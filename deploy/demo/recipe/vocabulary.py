"""The demo model's tokenizer: Gemma's special tokens and bytes under Gemma's ids, then pieces learned from the data.

Made anew it is the same. Merges never take digits in, cross a space or leave a line, so a number is its digits.
"""

import json
from collections.abc import Iterator
from random import Random

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from gemline.demo.tokenizer import LETTERS, SPACE, num_merges, tokenizer_of
from recipe.conversation import conversation
from recipe.python_source import a_piece

VOCAB_SIZE = 4096
_NUM_CONVERSATIONS, _NUM_PIECES = 30_000, 1_500
_WORDS = Regex(f"{SPACE}?[A-Za-z]+|{SPACE}?[^A-Za-z0-9{SPACE}\\s]+")


def learn_vocabulary() -> Tokenizer:
    """Byte-pair encoding over conversations and Python of the training split."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", SPACE)
    learner.pre_tokenizer = pre_tokenizers.Split(_WORDS, "removed", invert=True)
    trainer = trainers.BpeTrainer(
        vocab_size=len(LETTERS) + num_merges(VOCAB_SIZE), initial_alphabet=list(LETTERS), show_progress=False
    )
    learner.train_from_iterator(_texts(), trainer)
    merges = [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
    return tokenizer_of(merges[: num_merges(VOCAB_SIZE)])


def _texts() -> Iterator[str]:
    for index in range(_NUM_CONVERSATIONS):
        for exchange in conversation(Random(f"vocabulary {index}"), 0.0, held_out=False):
            yield f"user\n{exchange.question}"
            yield f"model\n{exchange.answer}"
    for index in range(_NUM_PIECES):
        yield a_piece(Random(f"vocabulary {index}"), 600, held_out=False)
