"""Which keys and values leave a prefill worker, and when. Knows no engine and no socket.

`needed` says, for each layer, which positions the first decoded token will read: all of them for a global layer, the
last window for a local one. What lies outside is never sent.
"""

from collections.abc import Iterator, Sequence

from gemline.transfer.frames import MAX_PAYLOAD_BYTES, KvRange


def ranges_of_chunk(
    needed: Sequence[range], start: int, stop: int, token_bytes: int, max_bytes: int = MAX_PAYLOAD_BYTES
) -> Iterator[KvRange]:
    """The needed part of the positions [start, stop), layer by layer, in ranges of at most `max_bytes`.

    `token_bytes` is the size of one position's keys and values in one layer.
    """
    num_tokens = max(1, max_bytes // token_bytes)
    for layer, wanted in enumerate(needed):
        last = min(stop, wanted.stop)
        for first in range(max(start, wanted.start), last, num_tokens):
            yield KvRange(layer, first, min(first + num_tokens, last))
