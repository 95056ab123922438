"""Prompts that workers died of, refused for a while, so that they cannot take every worker. Keeps no prompt."""

import hashlib
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable

from gemline.errors import PoisonRequest
from gemline.internal.v1 import decode_pb2

MAX_HELD = 1024  # of 32 bytes each; when there are more, the oldest is let go


class Quarantine:
    """Belongs to one gateway. A prompt is known by its fingerprint, of the tenant's salt and its token ids."""

    def __init__(self, hold_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._hold_s = hold_s
        self._clock = clock
        self._until: OrderedDict[bytes, float] = OrderedDict()  # the oldest first

    def hold(self, submit: decode_pb2.Submit) -> None:
        """Refuse this prompt from now on."""
        fingerprint = _fingerprint(submit)
        self._until[fingerprint] = self._clock() + self._hold_s
        self._until.move_to_end(fingerprint)
        if len(self._until) > MAX_HELD:
            self._until.popitem(last=False)

    def check(self, submit: decode_pb2.Submit) -> None:
        """Raises PoisonRequest for a prompt that is held."""
        self._release()
        if not self._until:  # as good as always: no fingerprint is made
            return
        until = self._until.get(_fingerprint(submit))
        if until is not None:
            rest_s = until - self._clock()
            raise PoisonRequest(f"workers were lost under this very prompt; it is refused for another {rest_s:.0f} s")

    def _release(self) -> None:
        now = self._clock()
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)


def _fingerprint(submit: decode_pb2.Submit) -> bytes:
    prompt = array("I", submit.token_ids[: submit.num_prompt_tokens])
    return hashlib.sha256(submit.cache_salt + prompt.tobytes()).digest()
