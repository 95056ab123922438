"""Names of full blocks: what stands in them, after what, of whose, for which weights. Knows no block.

    hash(block) = SHA-256(hash(the block before it) | its token ids, 4 bytes each)
    hash(before the first block) = SHA-256(length of revision | revision | salt), the tenant's root

So equal hashes mean equal keys and values, and nobody finds another tenant's blocks without that tenant's salt. A
public prefix, which an operator has declared, begins at the root of an empty salt instead, and is everybody's:

    hash(before the first block behind it) = SHA-256(hash(its last block) | the tenant's root)
"""

import sys
from array import array
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple, Self


class Roots(NamedTuple):
    """What the hashes of one sequence begin at."""

    own: bytes  # the tenant's
    public: bytes = b""
    num_public: int = 0  # blocks at its beginning that are everybody's

    @classmethod
    def of(cls, model_revision: str, salt: bytes, num_public: int = 0) -> Self:
        """Of a sequence of the tenant with that salt."""
        return cls(root_hash(model_revision, salt), root_hash(model_revision, b""), num_public)

    def tree(self, index: int) -> bytes:
        """The root of the tree that its block of that index is in."""
        return self.public if index < self.num_public else self.own

    def parent(self, index: int, hashes: Sequence[bytes]) -> bytes:
        """What stands for all before the block of that index; `hashes` are of the blocks before it."""
        if not index:
            return self.tree(0)
        return sha256(hashes[index - 1] + self.own).digest() if index == self.num_public else hashes[index - 1]


def root_hash(model_revision: str, salt: bytes) -> bytes:
    """What stands for the empty prefix of one tenant on one model."""
    revision = model_revision.encode()
    return sha256(len(revision).to_bytes(8, "little") + revision + salt).digest()


def extend_hashes(
    hashes: list[bytes], roots: Roots, token_ids: Sequence[int], block_size: int, num_blocks: int
) -> None:
    """Appends the hashes that the first `num_blocks` blocks of `token_ids` lack."""
    start = len(hashes)
    if start >= num_blocks:
        return
    data = memoryview(_bytes(token_ids[start * block_size : num_blocks * block_size]))
    num_bytes = 4 * block_size
    for index, offset in enumerate(range(0, len(data), num_bytes), start):
        digest = sha256(roots.parent(index, hashes))
        digest.update(data[offset : offset + num_bytes])
        hashes.append(digest.digest())


def _bytes(token_ids: Sequence[int]) -> bytes:
    """Little-endian, so that workers of any kind agree."""
    numbers = array("I", token_ids)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
