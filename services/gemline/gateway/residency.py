"""What each worker's prefix cache holds, as the workers say, by prefix: how much of a prompt each would find."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import Generic, TypeVar

from gemline.engine.block_hash import Roots, extend_hashes

NAME_BYTES = 8  # of a block's hash, as in `gemline.engine.residency`
_AS_NUMBERS = bytes.maketrans(b"01", b"\0\1")
KeyT = TypeVar("KeyT")


def prefix_names(
    revision: str, salt: bytes, num_public_tokens: int, token_ids: Sequence[int], block_size: int
) -> list[bytes]:
    """The name of each full block that a prompt could find cached: its last token is always computed.

    Its first `num_public_tokens` are those of a public prefix.
    """
    hashes: list[bytes] = []
    roots = Roots.of(revision, salt, num_public_tokens // block_size)
    extend_hashes(hashes, roots, token_ids, block_size, (len(token_ids) - 1) // block_size)
    return [block_hash[:NAME_BYTES] for block_hash in hashes]


class ResidencyIndex(Generic[KeyT]):
    """Of many workers; a prompt's longest hits are found in one walk over its names, however many workers there are."""

    def __init__(self) -> None:
        self._holders: dict[bytes, int] = {}  # the workers with that name, a bit each
        self._names: dict[KeyT, set[bytes]] = {}
        self._bit: dict[KeyT, int] = {}
        self._workers: list[KeyT | None] = []  # by bit

    def __len__(self) -> int:
        return len(self._holders)

    def update(self, worker: KeyT, added: Iterable[bytes], removed: Iterable[bytes] = ()) -> None:
        """What a worker says has changed; one that was not known has had nothing."""
        bit, names, holders = self._bit_of(worker), self._names[worker], self._holders
        for name in removed:
            if name in names:
                names.discard(name)
                self._forget(name, bit)
        for name in added:
            names.add(name)
            holders[name] = holders.get(name, 0) | bit

    def leave(self, worker: KeyT) -> None:
        """The worker has gone, and all it held; fine for one that was not known."""
        bit = self._bit.pop(worker, None)
        if bit is None:
            return
        for name in self._names.pop(worker):
            self._forget(name, bit)
        self._workers[bit.bit_length() - 1] = None

    def hits(self, names: Sequence[bytes]) -> dict[KeyT, int]:
        """For each worker that holds any, how many blocks of the prompt it would find."""
        found: dict[KeyT, int] = {}
        others, holders = -1, self._holders  # all bits: workers whose longest hit is not found yet
        for index in reversed([index for index, name in enumerate(names) if name in holders]):
            new = holders[names[index]] & others
            if new:
                found.update(dict.fromkeys(self._of(new), index + 1))
                others &= ~new
        return found

    def _of(self, bits: int) -> Iterator[KeyT]:
        """By `compress`, which looks at 500 workers in the time that arithmetic on so many bits takes for a few."""
        lowest_first = format(bits, "b")[::-1].encode().translate(_AS_NUMBERS)
        return (worker for worker in compress(self._workers, lowest_first) if worker is not None)

    def _forget(self, name: bytes, bit: int) -> None:
        left = self._holders[name] & ~bit
        if left:
            self._holders[name] = left
        else:
            del self._holders[name]

    def _bit_of(self, worker: KeyT) -> int:
        bit = self._bit.get(worker)
        if bit is None:
            index = next((index for index, other in enumerate(self._workers) if other is None), len(self._workers))
            if index == len(self._workers):
                self._workers.append(None)
            self._workers[index] = worker
            bit = self._bit[worker] = 1 << index
            self._names[worker] = set()
        return bit


def names_of(joined: bytes) -> list[bytes]:
    """The names in a field of `Residency`; what is no whole name at its end is left out."""
    return [joined[start : start + NAME_BYTES] for start in range(0, len(joined) - NAME_BYTES + 1, NAME_BYTES)]


class PrefixNames:
    """Of one prompt, made when they are first asked for: workers may have blocks of several sizes."""

    def __init__(self, revision: str, salt: bytes, num_public_tokens: int, token_ids: Sequence[int]) -> None:
        self._of = revision, salt, num_public_tokens, token_ids
        self._by_size: dict[int, list[bytes]] = {}

    def of(self, block_size: int) -> list[bytes]:
        """For blocks of so many tokens; none for a prompt that shares nothing."""
        if not self._of[1]:
            return []
        if block_size not in self._by_size:
            self._by_size[block_size] = prefix_names(*self._of, block_size)
        return self._by_size[block_size]
