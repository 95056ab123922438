"""The streams to all decode workers: follows the workers that come and go, and sends each request to one of them."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from gemline.cluster.records import ModelCard, WorkerRecord
from gemline.errors import Unavailable
from gemline.gateway.inbox import Inbox
from gemline.gateway.link import DecodeLink
from gemline.gateway.residency import PrefixNames, ResidencyIndex
from gemline.gateway.routing import Candidate, Life, Wish, choose
from gemline.internal.v1 import decode_pb2
from gemline.rpc.options import OpenChannel

SILENCE_TIMEOUT_S = 30.0
LINGER_S = 10.0  # a lease lasts 6 s and is renewed every 2 s: who is away for longer has gone
_LEAVE_POLL_S = 0.05


class Place(NamedTuple):
    """Where a request is."""

    worker_id: str
    inbox: Inbox
    num_predicted: int = 0  # tokens that are expected to be found in the worker's prefix cache
    life: Life | None = None  # of the worker


class Links:
    """One DecodeLink for each life of each decode worker in the last snapshot.

    A worker that leaves the snapshot gets no new request; those it has may end. They are not given up at once, for
    when Redis restarts empty every worker is away for a moment, and comes back under a new epoch.
    """

    def __init__(
        self,
        gateway_id: str,
        open_channel: OpenChannel,
        connect_timeout_s: float,
        linger_s: float = LINGER_S,
        silence_timeout_s: float = SILENCE_TIMEOUT_S,
        on_change: Callable[[], None] = lambda: None,
        takes_part: Callable[[WorkerRecord], bool] = lambda record: True,
    ) -> None:
        """`silence_timeout_s`: a worker of which no step is heard for so long, while tokens are due, is given up.

        `on_change` hears whenever a worker may have more room than before. `takes_part`: whether a worker's release is
        to have any request.
        """
        self._gateway_id = gateway_id
        self._open_channel = open_channel
        self._connect_timeout_s = connect_timeout_s
        self._linger_s = linger_s
        self._silence_timeout_s = silence_timeout_s
        self._on_change = on_change
        self._takes_part = takes_part
        self.is_closed = False
        self._links: dict[tuple[str, int], DecodeLink] = {}
        self._resident: ResidencyIndex[Candidate] = ResidencyIndex()
        self._leaving: dict[DecodeLink, asyncio.Task[None]] = {}

    def follow(self, records: Sequence[WorkerRecord]) -> None:
        """Attach to the workers that are new in this snapshot, and leave those that have gone."""
        current = {(record.worker_id, record.epoch): record for record in records}
        for life in self._links.keys() - current.keys():
            self._leave(self._links.pop(life))
        for life, record in current.items():
            if life in self._links:
                self._links[life].record = record
            else:
                self._links[life] = DecodeLink(
                    record,
                    self._gateway_id,
                    self._open_channel,
                    self._silence_timeout_s,
                    self._resident,
                    self._on_change,
                )

    async def stop(self) -> None:
        """Close every stream; what still runs fails."""
        self.is_closed = True
        for leaving in self._leaving.values():
            leaving.cancel()
        links = [*self._links.values(), *self._leaving]
        self._links.clear()
        await asyncio.gather(*(link.stop() for link in links))

    def has_room(self, model_id: str, num_tokens: int, *, is_first: bool) -> bool:
        """Whether a worker of the model would begin soon with a prompt of so many tokens.

        True also while no worker takes requests: to wait for one is not a matter of whose turn it is. `is_first`: of a
        tenant that has nothing running.
        """
        serving = [it for it in self._links.values() if it.record.model.model_id == model_id and it.takes_requests]
        links = [it for it in serving if self._takes_part(it.record)]
        return not links or any(it.has_room(num_tokens, _window(it.record.model), is_first=is_first) for it in links)

    def can_serve(self, card: ModelCard) -> bool:
        """Whether a request for the model could be sent now."""
        return any(link.takes_requests for link in self._serving(card))

    async def submit(
        self,
        card: ModelCard,
        submit: decode_pb2.Submit,
        avoid: Collection[str] = (),
        owner: Life | None = None,
        spread_by: str = "",
        release: str | None = None,
    ) -> Place:
        """Send the request to a worker of the model that is not in `avoid`, of the `release` if there is one, as
        `routing` says.

        Of equal workers those requests share one that have a `spread_by` in common; by itself each has its own.
        Waits a moment for a stream that is being opened; raises Unavailable when there is none.
        """
        if not self._open_links(card, avoid):
            await self._wait_for_one(card, avoid)
        return self.submit_now(card, submit, avoid, owner, spread_by, release)

    def submit_now(
        self,
        card: ModelCard,
        submit: decode_pb2.Submit,
        avoid: Collection[str] = (),
        owner: Life | None = None,
        spread_by: str = "",
        release: str | None = None,
    ) -> Place:
        """As `submit`, without waiting for anything."""
        link, num_hit_tokens = self._route(card, submit, avoid, owner, spread_by, release)
        return Place(link.record.worker_id, link.submit(submit, num_hit_tokens), num_hit_tokens, link.candidate().life)

    def pick(self, card: ModelCard, submit: decode_pb2.Submit, avoid: Collection[str] = ()) -> DecodeLink:
        """The link that `submit_now` would take."""
        return self._route(card, submit, avoid)[0]

    def _route(
        self,
        card: ModelCard,
        submit: decode_pb2.Submit,
        avoid: Collection[str],
        owner: Life | None = None,
        spread_by: str = "",
        release: str | None = None,
    ) -> tuple[DecodeLink, int]:
        """And how many tokens are expected to be found there."""
        num_tokens, window = len(submit.token_ids), _window(card)
        open_links = self._open_links(card, avoid).values()
        of_release = [link for link in open_links if link.record.release == release]
        every = {link.candidate(): link for link in of_release or open_links}
        roomy = {
            candidate: link
            for candidate, link in every.items()
            if candidate.life == owner or link.has_room(num_tokens, window, is_first=True)
        }
        links = roomy or every
        hits: dict[Candidate, int] = {}
        names = PrefixNames(card.revision, submit.cache_salt, submit.num_public_tokens, submit.token_ids)
        for block_size in {candidate.block_size for candidate in links}:
            for candidate, num_blocks in self._resident.hits(names.of(block_size)).items():
                if candidate in links and candidate.block_size == block_size:
                    hits[candidate] = num_blocks * block_size
        owning = next((candidate for candidate in links if candidate.life == owner), None)
        wish = Wish(spread_by or submit.request_id, num_tokens, window, owning)
        route = choose(list(links), wish, hits)
        if route is None:
            raise Unavailable(f"no decode worker can take a request for model {card.model_id} now; try again")
        return links[route.candidate], route.num_hit_tokens

    async def _wait_for_one(self, card: ModelCard, avoid: Collection[str]) -> None:
        opening = [link for link in self._serving(card) if link.record.worker_id not in avoid]
        waits = [asyncio.create_task(link.wait_standing()) for link in opening]
        if not waits:
            return
        try:
            await asyncio.wait(waits, timeout=self._connect_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _open_links(self, card: ModelCard, avoid: Collection[str]) -> dict[str, DecodeLink]:
        """By worker."""
        return {
            link.record.worker_id: link
            for link in self._serving(card)
            if link.takes_requests and link.record.worker_id not in avoid
        }

    def _serving(self, card: ModelCard) -> list[DecodeLink]:
        """Workers of the very model: another revision under the same name may have another tokenizer."""
        return [link for link in self._links.values() if link.record.model == card]

    def _leave(self, link: DecodeLink) -> None:
        task = self._leaving[link] = asyncio.create_task(self._see_out(link))
        task.add_done_callback(lambda _: self._leaving.pop(link, None))

    async def _see_out(self, link: DecodeLink) -> None:
        """Close the link when its requests have ended, or when the worker stays away."""
        loop = asyncio.get_running_loop()
        limit_s = loop.time() + self._linger_s
        while link.num_in_flight and (loop.time() < limit_s or self._is_back(link)):  # noqa: ASYNC110 - seldom
            await asyncio.sleep(_LEAVE_POLL_S)
        await link.stop()

    def _is_back(self, link: DecodeLink) -> bool:
        return any(worker_id == link.record.worker_id for worker_id, _ in self._links)


def _window(card: ModelCard) -> int:
    """Positions that local layers keep."""
    return card.window or card.context_length
