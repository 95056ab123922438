"""Which keys and values leave a prefill worker, and when. Knows no engine and no socket.

`needed` says, for each layer, which positions the first decoded token will read: all of them for a global layer, the
last window for a local one. What lies outside is never sent.
"""

from collections.abc import Iterator, Sequence

from gemline.internal.v1.prefill_pb2 import PrefillEnd
from gemline.internal.v1.sampling_pb2 import Logprobs
from gemline.transfer.frames import MAX_PAYLOAD_BYTES, KvRange, encode_end, encode_kv


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


class FrameWriter:
    """Encodes one stream's frames and counts them, so that its end frame can vouch for the rest."""

    def __init__(self) -> None:
        self.num_frames = 0
        self.num_bytes = 0

    def kv(self, kv: KvRange, payload: bytes | memoryview) -> bytes:
        """The frame of a range."""
        self.num_frames += 1
        self.num_bytes += memoryview(payload).nbytes
        return encode_kv(kv, payload)

    def end(self, token_id: int, logprobs: Logprobs | None, *, num_cached_tokens: int = 0) -> bytes:
        """The end frame, with the first generated token and how much of the prompt was not computed for it."""
        return encode_end(
            PrefillEnd(
                token_id=token_id,
                logprobs=logprobs,
                num_frames=self.num_frames,
                num_bytes=self.num_bytes,
                num_cached_tokens=num_cached_tokens,
            )
        )
