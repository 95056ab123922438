"""Where requests wait for a worker: by tenant, in the order that `shares` says. Knows no worker, but who has room.

Workers take what they can begin with soon and no more, so all waiting is here, where it can be fair. A tenant's own
requests go by band, then by age. Bands are strict, but every tenth turn is for whoever waits below: nobody starves.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gemline.cluster.access import BANDS, Band
from gemline.errors import DeadlineExceeded, Overloaded
from gemline.gateway.shares import Shares

MAX_WAITING = 4096
MAX_WAITING_OF_TENANT = 512
_TURN_BELOW = 10
LOOK_AGAIN_S = 0.25  # while somebody waits: room may come of what no stream of ours tells, as leases do
_SMOOTHING = 0.2  # of the mean time between two turns


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks for what."""

    tenant: str
    model: str
    num_tokens: int  # of the prompt
    weight: float = 1.0
    band: Band = "default"
    timeout_s: float | None = None  # of the caller's patience, for the whole answer


HasRoom = Callable[[Asking, bool], bool]  # has any worker; True: the tenant has nothing running there


class Ticket:
    """A turn: `sent` once a worker has the request, `wrote` as tokens come, `end` whatever became of it."""

    def __init__(self, queue: "FairQueue", asking: Asking, waited_s: float = 0.0) -> None:
        self._queue = queue
        self._asking = asking
        self._is_sent = self._is_over = False
        self.waited_s = waited_s

    def sent(self) -> None:
        """The worker has it: its room is told by the worker from now on."""
        if not self._is_sent:
            self._is_sent = True
            self._queue._sent()

    def wrote(self, num_tokens: int) -> None:
        """Tokens were delivered."""
        self._queue._shares.wrote(self._asking.tenant, num_tokens, self._asking.weight)

    def end(self) -> None:
        """May be called again."""
        if not self._is_over:
            self._is_over = True
            self.sent()
            self._queue._ended(self._asking)


@dataclass(slots=True, eq=False)
class _Waiting:
    asking: Asking
    turn: "asyncio.Future[None]"


@dataclass(slots=True)
class _Tenant:
    """What waits of one tenant for one model, by band."""

    bands: dict[Band, deque[_Waiting]] = field(default_factory=lambda: {band: deque() for band in BANDS})

    def __len__(self) -> int:
        return sum(map(len, self.bands.values()))


class FairQueue:
    """Of one gateway, for all models. Belongs to one event loop."""

    def __init__(self, has_room: HasRoom, shares: Shares | None = None) -> None:
        self._has_room = has_room
        self._shares = shares or Shares()
        self._tenants: dict[tuple[str, str], _Tenant] = {}  # by model and tenant; those that wait
        self._num_running: dict[tuple[str, str], int] = {}  # by model and tenant
        self._num_waiting = 0
        self._num_turns = 0
        self._in_transit = 0  # have their turn, and no worker knows yet
        self._turn_s: float | None = None  # mean time between two turns while somebody waits
        self._last_turn_at: float | None = None
        self._looking: asyncio.TimerHandle | None = None

    @property
    def num_waiting(self) -> int:
        """Requests."""
        return self._num_waiting

    async def admit(self, asking: Asking) -> Ticket:
        """Returns when it is the request's turn.

        Raises Overloaded when too many wait, DeadlineExceeded when its time is not enough, or has passed.
        """
        key = asking.model, asking.tenant
        if (
            not self._in_transit
            and not any(self._waiting_for(asking.model))
            and self._has_room(asking, self._is_idle(*key))
        ):
            self._enter(key)
            return self._begin(asking)
        self._refuse_hopeless(asking)
        loop = asyncio.get_running_loop()
        waiting, begun_s = _Waiting(asking, loop.create_future()), loop.time()
        self._enter(key)
        self._tenants.setdefault(key, _Tenant()).bands[asking.band].append(waiting)
        self._num_waiting += 1
        self.kick()
        if self._looking is None:
            self._look_again()
        try:
            async with asyncio.timeout(asking.timeout_s):
                await waiting.turn
        except TimeoutError:
            self._leave(waiting)
            raise DeadlineExceeded(
                f"no worker had room within the {asking.timeout_s:.3g} s that the caller gave"
            ) from None
        except BaseException:
            self._leave(waiting)
            raise
        return Ticket(self, asking, loop.time() - begun_s)

    def kick(self) -> None:
        """Something has changed: whoever's turn it is goes. One at a time, for each takes room that is not told yet."""
        if not self._num_waiting or self._in_transit:
            return
        for model in {model for model, _ in self._tenants}:
            while not self._in_transit and (waiting := self._next(model)) is not None:
                self._remove(waiting)
                self._note_turn()
                if not waiting.turn.done():
                    self._begin(waiting.asking)
                    waiting.turn.set_result(None)

    def _look_again(self) -> None:
        """From time to time, as long as anybody waits."""
        self.kick()
        again = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_again) if self._num_waiting else None
        self._looking = again

    def _next(self, model: str) -> _Waiting | None:
        """Whose turn it is, if there is room for it. A tenant that has nothing running may go before the others."""
        for names in (
            list(self._waiting_for(model)),
            [it for it in self._waiting_for(model) if self._is_idle(model, it)],
        ):
            if names and self._room_for(head := self._head(model, names)):
                return head
        return None

    def _head(self, model: str, names: list[str]) -> _Waiting:
        """Whose turn it is among those tenants."""
        bands = [band for band in BANDS if any(self._tenants[model, name].bands[band] for name in names)]
        if (self._num_turns + 1) % _TURN_BELOW == 0:
            bands.reverse()
        able = [name for name in names if self._tenants[model, name].bands[bands[0]]]
        return self._tenants[model, self._shares.next(able)].bands[bands[0]][0]

    def _room_for(self, waiting: _Waiting) -> bool:
        asking = waiting.asking
        return self._has_room(asking, self._is_idle(asking.model, asking.tenant))

    def _is_idle(self, model: str, tenant: str) -> bool:
        return not self._num_running.get((model, tenant))

    def _enter(self, key: tuple[str, str]) -> None:
        if key not in self._tenants:
            self._shares.enter(key[1], [tenant for _, tenant in self._tenants])

    def _begin(self, asking: Asking) -> Ticket:
        key = asking.model, asking.tenant
        self._in_transit += 1
        self._num_running[key] = self._num_running.get(key, 0) + 1
        self._shares.read(asking.tenant, asking.num_tokens, asking.weight)
        return Ticket(self, asking)

    def _sent(self) -> None:
        self._in_transit -= 1
        self.kick()

    def _ended(self, asking: Asking) -> None:
        key = asking.model, asking.tenant
        self._num_running[key] -= 1
        if not self._num_running[key]:
            del self._num_running[key]
        self.kick()

    def _leave(self, waiting: _Waiting) -> None:
        """It does not wait any longer; a turn that it had got meanwhile goes to the next."""
        if waiting.turn.done() and not waiting.turn.cancelled():
            Ticket(self, waiting.asking).end()
        elif (
            waiting
            in self._tenants.get((waiting.asking.model, waiting.asking.tenant), _Tenant()).bands[waiting.asking.band]
        ):
            self._remove(waiting)

    def _remove(self, waiting: _Waiting) -> None:
        key = waiting.asking.model, waiting.asking.tenant
        tenant = self._tenants[key]
        tenant.bands[waiting.asking.band].remove(waiting)
        self._num_waiting -= 1
        if not len(tenant):
            del self._tenants[key]

    def _refuse_hopeless(self, asking: Asking) -> None:
        own = len(self._tenants.get((asking.model, asking.tenant), ()))
        if own >= MAX_WAITING_OF_TENANT:
            raise Overloaded(f"{own} requests of this tenant wait already, as many as may; try again later")
        if self._num_waiting >= MAX_WAITING:
            raise Overloaded(f"{self._num_waiting} requests wait already, as many as may; try again later")
        if asking.timeout_s is None or self._turn_s is None:
            return
        num_before = min(self._num_waiting, (own + 1) * sum(1 for _ in self._waiting_for(asking.model)))
        wait_s = num_before * self._turn_s
        if wait_s > asking.timeout_s:
            patience = f"the caller gave {asking.timeout_s:.3g} s"
            raise DeadlineExceeded(f"its turn would come in about {wait_s:.3g} s, and {patience}; try again later")

    def _waiting_for(self, model: str) -> Iterator[str]:
        return (tenant for of, tenant in self._tenants if of == model)

    def _note_turn(self) -> None:
        self._num_turns += 1
        now = asyncio.get_running_loop().time()
        if self._last_turn_at is not None:
            gap_s = now - self._last_turn_at
            self._turn_s = gap_s if self._turn_s is None else (1 - _SMOOTHING) * self._turn_s + _SMOOTHING * gap_s
        self._last_turn_at = now if self._num_waiting else None
