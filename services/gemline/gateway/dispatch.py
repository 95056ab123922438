"""One request and the worker that has it. Knows when and how it goes on elsewhere, and nothing of its text."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from gemline.cluster.records import ModelCard
from gemline.errors import GemlineError, Overloaded, PoisonRequest, Unavailable, WorkerLost
from gemline.gateway.inbox import Delivery
from gemline.gateway.links import Links, Place
from gemline.gateway.moves import Reason, reason_of_return
from gemline.gateway.quarantine import Quarantine
from gemline.gateway.routing import Life
from gemline.gateway.suspects import Record, Suspects
from gemline.gateway.transcript import Transcript
from gemline.internal.v1 import decode_pb2

log = logging.getLogger(__name__)

# For how long a suspect waits until it can be tried alone; then it is tried beside others.
TURN_S = 1.0
_MIN_POLL_S, _MAX_POLL_S = 0.01, 0.1
_REFUSED_PAUSE_S = 0.25  # once every worker has refused
_NOTHING = Delivery([], [], None)


@dataclass(frozen=True, slots=True)
class Ground:
    """What the requests of one gateway share."""

    links: Links
    suspects: Suspects
    quarantine: Quarantine
    resume_timeout_s: float  # for a request whose worker has gone to find another


class Dispatch:
    """A request whose worker dies, freezes or drains goes on at another one from the tokens that were delivered.

    When no other can take it, the same worker may come back: that is waited for, a while. A worker that refuses a
    request which has nothing yet is passed over for the next, at once or not at all.
    """

    def __init__(
        self,
        ground: Ground,
        card: ModelCard,
        submit: decode_pb2.Submit,
        on_move: Callable[[Reason], None] = lambda reason: None,
        *,
        owner: Life | None = None,
        spread_by: str = "",
        release: str | None = None,
        on_hit: Callable[[int, int], None] = lambda predicted, actual: None,
    ) -> None:
        """`on_move` hears of every move to another worker.

        `owner` is the worker that has the request's session; workers of `release` come before others; requests of one
        `spread_by` go to one of several workers that are equal. `on_hit` hears how many tokens of the prompt were
        expected in the first worker's prefix cache, and how many were there.
        """
        self._ground = ground
        self._card = card
        self._transcript = Transcript(submit)
        self._on_move = on_move
        self._owner = owner
        self._spread_by = spread_by
        self._release = release
        self._on_hit = on_hit
        self._record = Record()
        self._avoid: set[str] = set()  # workers that just refused it, or lost it
        self._left: GemlineError | None = None  # what it was that it last left a worker for, refusals apart
        self._give_up_at: float | None = None  # of the loop's clock, while it has no worker
        self._turn_until = 0.0
        self._waiting: asyncio.Timeout | None = None
        self._is_unsettled = False  # it was moved, and has no token since
        self._is_canceled = False

    @property
    def life(self) -> Life | None:
        """The life of the worker that has it, or had it last."""
        return self._place.life

    async def start(self) -> None:
        """Give the request to a worker; raises Unavailable when there is none, PoisonRequest when it may have none."""
        self._ground.quarantine.check(self._transcript.submit)
        links, submit = self._ground.links, self._transcript.submit
        self._place = await links.submit(
            self._card, submit, owner=self._owner, spread_by=self._spread_by, release=self._release
        )

    async def take(self) -> Delivery:
        """What came since the last time; raises the request's error."""
        while True:
            try:
                delivery = await self._place.inbox.take()
            except (Unavailable, Overloaded) as error:
                if self._is_canceled or not await self._move(error):
                    return _NOTHING
            else:
                if delivery.token_ids and not self._transcript.num_delivered:
                    self._on_hit(self._place.num_predicted, delivery.num_resident)
                if self._is_unsettled and delivery.token_ids:
                    self._settle()
                return self._transcript.note(delivery)

    def cancel(self) -> None:
        """Tell the worker that nobody reads on; harmless after the end."""
        self._is_canceled = True
        self._place.inbox.cancel()
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())

    async def _move(self, error: Unavailable | Overloaded) -> bool:
        """To another worker; False when it was canceled meanwhile. Raises when it must or can go to none."""
        origin = self._place
        reason = origin.inbox.broken_by or reason_of_return(error)
        self._avoid.add(origin.worker_id)
        self._is_unsettled = True
        if reason is Reason.REFUSED and not self._left and not self._transcript.num_delivered:
            await self._pass_over(error)
        else:
            self._weigh(reason, error)
            await self._go_on(error, _REFUSED_PAUSE_S if reason is Reason.REFUSED else _MIN_POLL_S)
        if self._is_canceled:
            self._place.inbox.cancel()
            return False
        self._on_move(reason)
        log.info(
            "request %s goes on at %s after %d tokens; %s: %s",
            self._transcript.submit.request_id,
            self._place.worker_id,
            self._transcript.num_delivered,
            origin.worker_id,
            reason.value,
        )
        return True

    async def _pass_over(self, refusal: GemlineError) -> None:
        """Nothing has been generated: whoever sent it may as well send it again."""
        ground, submit = self._ground, self._transcript.submit
        ground.quarantine.check(submit)
        try:
            self._place = await ground.links.submit(self._card, submit, self._avoid, release=self._release)
        except Unavailable:
            raise refusal from None

    def _weigh(self, reason: Reason, error: GemlineError) -> None:
        """What leaving a worker means for the request; raises PoisonRequest when it is what workers die of."""
        now_s = asyncio.get_running_loop().time()
        if reason.is_loss:
            self._record.lost(may_be_caused=reason.may_be_caused)
            self._turn_until = now_s + TURN_S
        if self._record.is_convicted:
            self._ground.quarantine.hold(self._transcript.submit)
            num = self._record.num_losses
            raise PoisonRequest(f"{num} workers were lost under this request, one after the other; it is given up")
        if reason is not Reason.REFUSED:
            self._left = error
        if self._give_up_at is None or reason is not Reason.REFUSED:
            self._give_up_at = now_s + self._ground.resume_timeout_s

    async def _go_on(self, error: GemlineError, pause_s: float) -> None:
        """Find a worker in time; returns early when it is canceled."""
        try:
            async with asyncio.timeout_at(self._give_up_at) as self._waiting:
                await self._find_worker(pause_s)
        except TimeoutError:
            if not self._is_canceled:
                raise self._given_up(error) from None
        finally:
            self._waiting = None

    async def _find_worker(self, pause_s: float) -> None:
        """Another one first; after a pause, any."""
        while True:
            try:
                return await self._try_worker()
            except Unavailable:
                if self._ground.links.is_closed:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = max(pause_s, min(2 * pause_s, _MAX_POLL_S))
            self._avoid.clear()

    async def _try_worker(self) -> None:
        links, submit = self._ground.links, self._transcript.submit
        if self._record.is_suspect:
            await self._stand_trial()
        else:
            self._place = links.submit_now(self._card, submit, self._avoid, release=self._release)

    async def _stand_trial(self) -> None:
        """To a worker of its own, if there is one in time, which is alive: its death would count."""
        ground, submit = self._ground, self._transcript.submit
        may_wait = asyncio.get_running_loop().time() < self._turn_until
        taken = ground.suspects.workers() if may_wait else set()
        link = ground.links.pick(self._card, submit, self._avoid | taken)
        worker_id = link.record.worker_id
        trial = ground.suspects.begin(worker_id)
        try:
            if not await link.answers():
                self._avoid.add(worker_id)
                raise Unavailable("the worker does not answer")
            ground.quarantine.check(submit)  # the same prompt of another request may have been convicted meanwhile
            self._place = Place(worker_id, link.submit(submit), life=link.candidate().life)
        except BaseException:
            trial.abandon()
            raise
        trial.sent(self._place.inbox)
        self._record.tried(trial)

    def _given_up(self, error: GemlineError) -> WorkerLost:
        cause = (self._left or error).message
        limit_s = self._ground.resume_timeout_s
        return WorkerLost(f"{cause}, and no other could take it within {limit_s:g} s; send the request again")

    def _settle(self) -> None:
        """It has a token from where it is."""
        self._is_unsettled = False
        self._record.cleared()
        self._avoid.clear()
        self._left = None
        self._give_up_at = None
