"""One request and what its reader has got of it: all that another worker needs to go on. Knows no worker."""

from gemline.engine.events import FinishReason
from gemline.gateway.inbox import Delivery
from gemline.internal.v1 import decode_pb2


class Transcript:
    """The request as it was sent, and every id that was delivered since.

    A draw depends on (seed, position) alone, and max_tokens and penalties count from num_prompt_tokens: whoever goes
    on gives the same tokens as the worker before would have.
    """

    def __init__(self, submit: decode_pb2.Submit) -> None:
        self._submit = submit
        self._fresh_ids: list[int] = []  # not in the message yet: to add one to it costs more than all else here
        self.num_delivered = len(submit.token_ids) - submit.num_prompt_tokens  # generated tokens the reader has got
        self._stop_ids = frozenset(submit.sampling.stop_token_ids)
        self._max_tokens = submit.sampling.max_tokens

    @property
    def submit(self) -> decode_pb2.Submit:
        """What the next worker is to be sent: the prompt, and what was generated behind it."""
        self._submit.token_ids.extend(self._fresh_ids)
        self._fresh_ids.clear()
        return self._submit

    def note(self, delivery: Delivery) -> Delivery:
        """What the reader gets for it.

        Its last token may end the request: then that is said here, so that no worker has to live to say it. Tokens
        found in a later worker's prefix cache are not the user's gain: only those of the first placement count.
        """
        token_ids = delivery.token_ids
        if not token_ids:
            return delivery
        if delivery.num_cached and self.num_delivered:
            delivery = delivery._replace(num_cached=0)
        self._fresh_ids += token_ids
        self.num_delivered += len(token_ids)
        if delivery.finish is None and (finish := self._finish(token_ids[-1])) is not None:
            delivery = delivery._replace(finish=finish)
        return delivery

    def _finish(self, last_id: int) -> FinishReason | None:
        if last_id in self._stop_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if self.num_delivered >= self._max_tokens else None
