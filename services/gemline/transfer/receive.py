"""What a decode worker accepts of a KV stream: every needed position once, in order, or nothing. Knows no socket."""

from collections.abc import Sequence

from gemline.internal.v1.prefill_pb2 import PrefillEnd
from gemline.transfer.frames import KvHeader, KvRange, TransferError


class FrameReader:
    """Checks the headers of one stream. `end` is set once the end came and everything before it was complete."""

    def __init__(self, needed: Sequence[range], token_bytes: int) -> None:
        self._needed = needed
        self._token_bytes = token_bytes
        self._next = [wanted.start for wanted in needed]  # per layer, the first position still missing
        self.num_frames = 0
        self.num_bytes = 0
        self.end: PrefillEnd | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all that is needed has come; the end has not, perhaps."""
        return all(reached == wanted.stop for reached, wanted in zip(self._next, self._needed, strict=True))

    def accept(self, header: KvHeader) -> KvRange:
        """The range of the next frame, if it is one that is missing and has its size. Raises TransferError."""
        kv = KvRange(header.layer, header.start, header.stop)
        layer, start, stop = kv
        if self.end is not None:
            raise TransferError(f"layer {layer}: positions [{start}, {stop}) come after the end frame")
        if layer >= len(self._needed):
            raise TransferError(f"a frame is for layer {layer} of a model with {len(self._needed)} layers")
        if start >= stop:
            raise TransferError(f"layer {layer}: the range [{start}, {stop}) is empty")
        if start != self._next[layer] or stop > self._needed[layer].stop:
            expected = f"[{self._next[layer]}, {self._needed[layer].stop})"
            raise TransferError(f"layer {layer}: positions [{start}, {stop}) came where {expected} is missing")
        if header.num_bytes != (expected_bytes := (stop - start) * self._token_bytes):
            raise TransferError(f"layer {layer}: {header.num_bytes} bytes came, expected {expected_bytes}")
        self._next[layer] = stop
        self.num_frames += 1
        self.num_bytes += header.num_bytes
        return kv

    def finish(self, end: PrefillEnd) -> None:
        """Takes the end of the stream. Raises TransferError when anything is missing before it, and a second time."""
        if self.end is not None:
            raise TransferError("a second end frame came")
        for layer, wanted in enumerate(self._needed):
            if self._next[layer] < wanted.stop:
                raise TransferError(f"layer {layer}: positions [{self._next[layer]}, {wanted.stop}) are missing")
        if (end.num_frames, end.num_bytes) != (self.num_frames, self.num_bytes):
            raise TransferError(
                f"{self.num_frames} frames of {self.num_bytes} bytes came, "
                f"{end.num_frames} of {end.num_bytes} were sent"
            )
        self.end = end
