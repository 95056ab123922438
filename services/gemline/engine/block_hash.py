"""Names of full blocks: what stands in them, after what, of whose, for which weights. Knows no block.

    hash(block) = SHA-256(hash(the block before it) | its token ids, 4 bytes each)
    hash(before the first block) = SHA-256(length of revision | revision | salt)

So equal hashes mean equal keys and values, and nobody finds another tenant's blocks without that tenant's salt.
"""

import sys
from array import array
from collections.abc import Sequence
from hashlib import sha256


def root_hash(model_revision: str, salt: bytes) -> bytes:
    """What stands for the empty prefix of one tenant on one model."""
    revision = model_revision.encode()
    return sha256(len(revision).to_bytes(8, "little") + revision + salt).digest()


def extend_hashes(hashes: list[bytes], root: bytes, token_ids: Sequence[int], block_size: int, num_blocks: int) -> None:
    """Appends the hashes that the first `num_blocks` blocks of `token_ids` lack."""
    start = len(hashes)
    if start >= num_blocks:
        return
    data = memoryview(_bytes(token_ids[start * block_size : num_blocks * block_size]))
    parent = hashes[-1] if hashes else root
    num_bytes = 4 * block_size
    for offset in range(0, len(data), num_bytes):
        digest = sha256(parent)
        digest.update(data[offset : offset + num_bytes])
        parent = digest.digest()
        hashes.append(parent)


def _bytes(token_ids: Sequence[int]) -> bytes:
    """Little-endian, so that workers of any kind agree."""
    numbers = array("I", token_ids)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
