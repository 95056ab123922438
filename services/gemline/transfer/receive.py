"""What a decode worker accepts of a KV stream: every needed position once, in order, or nothing. Knows no socket."""

from collections.abc import Sequence

from gemline.internal.v1.prefill_pb2 import PrefillEnd
from gemline.transfer.frames import KvFrame, TransferError, decode


class FrameReader:
    """Checks the frames of one stream. `end` is set once the last one came and everything before it was complete."""

    def __init__(self, needed: Sequence[range], token_bytes: int) -> None:
        self._needed = needed
        self._token_bytes = token_bytes
        self._next = [wanted.start for wanted in needed]  # per layer, the first position still missing
        self.num_frames = 0
        self.num_bytes = 0
        self.end: PrefillEnd | None = None

    def read(self, frame: bytes) -> KvFrame | None:
        """The keys and values of the next frame, or None when it was the end. Raises TransferError."""
        if self.end is not None:
            raise TransferError("a frame follows the end frame")
        content = decode(frame)
        if isinstance(content, KvFrame):
            return self._accept(content)
        self._finish(content)
        return None

    def _accept(self, frame: KvFrame) -> KvFrame:
        layer, start, stop = frame.range
        if layer >= len(self._needed):
            raise TransferError(f"a frame is for layer {layer} of a model with {len(self._needed)} layers")
        if start != self._next[layer] or stop > self._needed[layer].stop:
            expected = f"[{self._next[layer]}, {self._needed[layer].stop})"
            raise TransferError(f"layer {layer}: positions [{start}, {stop}) came where {expected} is missing")
        if frame.payload.nbytes != (stop - start) * self._token_bytes:
            expected_bytes = (stop - start) * self._token_bytes
            raise TransferError(f"layer {layer}: {frame.payload.nbytes} bytes came, expected {expected_bytes}")
        self._next[layer] = stop
        self.num_frames += 1
        self.num_bytes += frame.payload.nbytes
        return frame

    def _finish(self, end: PrefillEnd) -> None:
        for layer, wanted in enumerate(self._needed):
            if self._next[layer] < wanted.stop:
                raise TransferError(f"layer {layer}: positions [{self._next[layer]}, {wanted.stop}) are missing")
        if (end.num_frames, end.num_bytes) != (self.num_frames, self.num_bytes):
            raise TransferError(
                f"{self.num_frames} frames of {self.num_bytes} bytes came, "
                f"{end.num_frames} of {end.num_bytes} were sent"
            )
        self.end = end
