"""Training examples and the batches that they are put together to. Knows no model and no text."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch

LENGTHS = (48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192)  # rows of a batch are padded to one of them
_PAD = 0


class Example(NamedTuple):
    """Token ids, and which of them are to be learned: `learned[i]` tells whether ids[i] is predicted from ids[:i]."""

    ids: list[int]
    learned: list[bool]


class Examples(Protocol):
    """An endless, repeatable stream."""

    def __call__(self, index: int, progress: float, /) -> Example:
        """The example of that number, for a training that is `progress` (0 to 1) on its way. Always the same."""
        ...


class Batch(NamedTuple):
    """Rows of one length. Position j of `targets_T` is what follows the position at `places_T[j]` of all B * T."""

    ids_BT: torch.Tensor
    places_T: torch.Tensor
    targets_T: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Of all rows, padding included: what a step's work is measured by."""
        return self.ids_BT.numel()

    def to(self, device: torch.device) -> "Batch":
        """The same, there."""
        return Batch(*(tensor.to(device) for tensor in self))


class Batcher:
    """Sorts examples by length until a batch of one length is full. Its state is an index and what waits."""

    def __init__(self, examples: Examples, tokens_per_batch: int, max_length: int) -> None:
        self._examples = examples
        self._tokens_per_batch = tokens_per_batch
        self._lengths = [*(length for length in LENGTHS if length < max_length), max_length]
        self._waiting: dict[int, list[Example]] = defaultdict(list)
        self._index = 0

    def next(self, progress: float) -> Batch:
        """The next batch that gets full; an example that is too long is cut."""
        while True:
            example = self._examples(self._index, progress)
            self._index += 1
            length = next((length for length in self._lengths if length >= len(example.ids)), self._lengths[-1])
            rows = self._waiting[length]
            rows.append(Example(example.ids[:length], example.learned[:length]))
            if len(rows) >= max(1, self._tokens_per_batch // length):
                return as_batch(self._waiting.pop(length), length)

    def state(self) -> tuple[int, dict[int, list[Example]]]:
        """What `restore` needs to go on as this one would."""
        return self._index, {length: list(rows) for length, rows in self._waiting.items()}

    def restore(self, state: Sequence[Any]) -> None:
        """Go on from what `state` gave, as JSON may have changed it: lists for tuples, text for numbers as keys."""
        self._index = state[0]
        self._waiting = defaultdict(
            list, {int(length): [Example(*row) for row in rows] for length, rows in state[1].items()}
        )


def as_batch(rows: list[Example], length: int) -> Batch:
    """Those examples, each padded to `length` behind its end, where nothing is learned."""
    ids_BT = torch.full((len(rows), length), _PAD)
    for row, example in enumerate(rows):
        ids_BT[row, : len(example.ids)] = torch.tensor(example.ids)
    learned = list(_learned_places(rows, length))
    places_T = torch.tensor([place for place, _ in learned], dtype=torch.long)
    return Batch(ids_BT, places_T, torch.tensor([target for _, target in learned], dtype=torch.long))


def _learned_places(rows: list[Example], length: int) -> Iterator[tuple[int, int]]:
    for row, example in enumerate(rows):
        for position in range(1, len(example.ids)):
            if example.learned[position]:
                yield row * length + position - 1, example.ids[position]
