"""The turns of sessions that run on this gateway: keeps their leases, ends each once, insists while Redis is away."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TypeVar

from gemline.cluster.session_records import Residence, Turn
from gemline.cluster.sessions import SessionStore, new_lease
from gemline.errors import GemlineError, TurnNotSaved, Unavailable
from gemline.telemetry import Telemetry

log = logging.getLogger(__name__)

INSIST_S = 10.0  # for so long an answer's end waits for a Redis that is away
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.05, 1.0
_LEAVE_S = 1.0  # for a turn of ours that was given up to leave its session to the next
_STOP_S = 2.0  # for what is still to be said at the end of the process

_T = TypeVar("_T")


class Turns:
    """Belongs to one event loop. Redis hears of a turn when it begins, when it ends, and in between thrice a lease."""

    def __init__(self, store: SessionStore, telemetry: Telemetry, insist_s: float = INSIST_S) -> None:
        self._store = store
        self._insist_s = insist_s
        self._ends = telemetry.meter.create_counter(
            "gemline_gateway_session_turns",
            description="Turns of sessions that ended: saved; dropped, for they failed or were canceled; or unsaved,"
            " for the session could not be told.",
        )
        self._running: dict[str, Turn] = {}  # by lease
        self._leaving: dict[tuple[str, str], asyncio.Task[None]] = {}  # by tenant and session
        self._renewing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # to be seen to their end

    async def begin(self, tenant_id: str, session_id: str) -> Turn:
        """Takes the session for a turn; whoever gets one ends it by one of the three below."""
        lease = new_lease()
        if (leaving := self._leaving.get((tenant_id, session_id))) is not None:
            await asyncio.wait([leaving], timeout=_LEAVE_S)
        try:
            turn = await self._store.begin_turn(tenant_id, session_id, lease)
        except (Unavailable, asyncio.CancelledError):  # Redis may have taken it all the same
            self._later(self._insist(lambda: self._store.release_lease(tenant_id, session_id, lease)))
            raise
        self._running[lease] = turn
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew_all(), name="session leases")
        return turn

    async def save(self, turn: Turn, token_ids: Sequence[int], residence: Residence) -> None:
        """Adds it to its session, even if the caller is canceled meanwhile.

        Raises TurnNotSaved when Redis stays away, Conflict and SessionNotFound when the session was taken or ended.
        """
        await asyncio.shield(self._later(self._save(turn, token_ids, residence)))

    async def release(self, turn: Turn) -> None:
        """Leaves the session as it was; returns when that is said, or Redis has not listened once."""
        self._end(turn, "dropped")
        try:
            await self._store.release(turn)
        except Unavailable:
            self._let_go(turn)
        except asyncio.CancelledError:
            self._let_go(turn)
            raise

    def abandon(self, turn: Turn) -> None:
        """The same without waiting."""
        self._end(turn, "dropped")
        self._let_go(turn)

    async def stop(self) -> None:
        """Says what is still to be said, for a moment, and no more."""
        if self._renewing is not None:
            self._renewing.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_STOP_S)
        for task in self._tasks:
            task.cancel()

    async def _save(self, turn: Turn, token_ids: Sequence[int], residence: Residence) -> None:
        try:
            await self._insist(lambda: self._store.commit(turn, token_ids, residence))
            self._end(turn, "saved")
        except Unavailable as error:
            self._let_go(turn)
            session_id, num_turns = turn.record.session_id, turn.record.num_turns + 1
            raise TurnNotSaved(
                f"the answer has come to its end, but session {session_id} could not be reached to keep it, and may"
                f" lack this turn: with it, its num_turns is {num_turns}"
            ) from error
        finally:
            self._end(turn, "unsaved")

    def _end(self, turn: Turn, outcome: str) -> None:
        """It is renewed no more; counted once."""
        if self._running.pop(turn.lease, None) is not None:
            self._ends.add(1, {"outcome": outcome})

    def _let_go(self, turn: Turn) -> None:
        """In the background; a turn that comes right after it waits until Redis has heard of it."""
        name = turn.tenant_id, turn.record.session_id
        self._leaving[name] = task = self._later(self._insist(lambda: self._store.release(turn)))

        def left(done: "asyncio.Task[None]") -> None:
            if self._leaving.get(name) is done:
                del self._leaving[name]

        task.add_done_callback(left)

    async def _insist(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Until Redis has listened; raises the last Unavailable when it does not for too long."""
        loop = asyncio.get_running_loop()
        limit_s, pause_s = loop.time() + self._insist_s, _MIN_PAUSE_S
        while True:
            try:
                return await call()
            except Unavailable:
                if loop.time() + pause_s > limit_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _later(self, work: Coroutine[object, object, None]) -> "asyncio.Task[None]":
        """A task that is seen to its end, whoever waits for it or not."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            known = isinstance(error, GemlineError)
            log.warning("a session's turn did not end well: %s", error, exc_info=None if known else error)

    async def _renew_all(self) -> None:
        """While any turn runs."""
        while self._running:
            await asyncio.sleep(self._store.lease_s / 3)
            await asyncio.gather(*map(self._renew, list(self._running.values())))

    async def _renew(self, turn: Turn) -> None:
        try:
            if not await self._store.renew(turn):
                log.warning("session %s was taken from its turn or ended", turn.record.session_id)
        except Unavailable:
            return  # the next one may do; until the lease ends nobody takes it
