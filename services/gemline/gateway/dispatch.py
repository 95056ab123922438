"""One request and the worker that has it. Knows when it may be given to another worker, and nothing of its text."""

from gemline.cluster.records import ModelCard
from gemline.errors import Overloaded, Unavailable, WorkerLost
from gemline.gateway.inbox import Delivery
from gemline.gateway.links import Links
from gemline.internal.v1 import decode_pb2


class Dispatch:
    """A worker that refuses the request (it is going away, or its queue is full) is passed over for the next one.

    A worker that dies under the request is not: it may have died of it. Nor is a request moved that has tokens.
    """

    def __init__(self, links: Links, card: ModelCard, submit: decode_pb2.Submit) -> None:
        self._links = links
        self._card = card
        self._submit = submit
        self._refused_by: set[str] = set()
        self._is_begun = False
        self._is_canceled = False

    async def start(self) -> None:
        """Give the request to a worker; raises Unavailable when there is none."""
        self._place = await self._links.submit(self._card, self._submit, self._refused_by)

    async def take(self) -> Delivery:
        """What the worker sent since the last time; raises the request's error."""
        while True:
            try:
                delivery = await self._place.inbox.take()
            except (Unavailable, Overloaded) as error:
                await self._place_again(error)
            else:
                self._is_begun = True
                return delivery

    def cancel(self) -> None:
        """Tell the worker that nobody reads on; harmless after the end."""
        self._is_canceled = True
        self._place.inbox.cancel()

    async def _place_again(self, error: Unavailable | Overloaded) -> None:
        if isinstance(error, WorkerLost):
            raise error
        if self._is_begun:
            raise WorkerLost(error.message)
        self._refused_by.add(self._place.worker_id)
        try:
            await self.start()
        except Unavailable:
            raise error from None
        if self._is_canceled:  # meanwhile
            self._place.inbox.cancel()
