"""What a sequence has said so far, as penalties need it. Knows no torch."""

from array import array
from collections.abc import Iterable


class History:
    """The distinct tokens of a prompt and its answer, and how often each stands in the answer.

    Kept as two arrays that grow by a token at a time, so that a step copies them and builds nothing.
    """

    def __init__(self, prompt_ids: Iterable[int] = (), answer_ids: Iterable[int] = ()) -> None:
        self._index_of = {token_id: index for index, token_id in enumerate(dict.fromkeys(prompt_ids))}
        self.token_ids = array("q", self._index_of)
        self.answer_counts = array("q", bytes(8 * len(self.token_ids)))  # one for each of token_ids
        for token_id in answer_ids:
            self.append(token_id)

    def among(self, tokens: range) -> "History":
        """Of these tokens alone, numbered from the first of them."""
        part = History()
        for token_id, count in zip(self.token_ids, self.answer_counts, strict=True):
            if token_id in tokens:
                part.token_ids.append(token_id - tokens.start)
                part.answer_counts.append(count)
        return part

    def append(self, token_id: int) -> None:
        """One more token of the answer."""
        index = self._index_of.setdefault(token_id, len(self.token_ids))
        if index == len(self.token_ids):
            self.token_ids.append(token_id)
            self.answer_counts.append(0)
        self.answer_counts[index] += 1
