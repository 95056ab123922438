"""Which workers there are: a worker's lease on being one, and everybody's view of them all. Never on the token path."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from gemline.cluster import scripts
from gemline.cluster.connection import TIMEOUT_S, calling
from gemline.cluster.records import Role, State, WorkerRecord
from gemline.errors import StaleEpoch, Unavailable

TTL_S = 6.0
RENEW_S = 2.0
RESYNC_S = 1.0

logger = logging.getLogger(__name__)


class WorkerLease:
    """One worker's place in Redis, renewed by a task until `withdraw`.

    A lease that was lost (Redis restarted empty, or this process stood still) is taken anew under a new epoch;
    `on_epoch` hears of every epoch before the lease counts as valid, so that work of an earlier one can be dropped.
    """

    def __init__(
        self,
        redis: Redis,
        record: WorkerRecord,
        ttl_s: float = TTL_S,
        renew_s: float = RENEW_S,
        *,
        on_epoch: Callable[[int], None] = lambda epoch: None,
        load: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        """`load` gives (num_running, num_waiting) and is asked at each renewal."""
        self._redis = redis
        self._record = record
        self._ttl_s = ttl_s
        self._renew_s = renew_s
        self._on_epoch = on_epoch
        self._load = load
        self._valid_until = float("-inf")
        self._superseded = False
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()  # two renewals that both find the lease lost would both register
        self._register = redis.register_script(scripts.REGISTER)
        self._renew = redis.register_script(scripts.RENEW)
        self._withdraw = redis.register_script(scripts.WITHDRAW)

    @property
    def record(self) -> WorkerRecord:
        """What others read of this worker."""
        return self._record

    @property
    def valid(self) -> bool:
        """Whether the lease surely stands, from any thread. False: others may have given this worker up; say nothing.

        Counted on this process's monotonic clock from when the last renewal was sent: never later than the end that
        Redis knows. A process that stood still past that end is not valid until it has registered again; one that is
        awake while Redis is away stays so, for nobody else can learn of a change either.
        """
        return time.monotonic() < self._valid_until

    def check(self) -> None:
        """Raises StaleEpoch once another life has taken this worker's name, or when renewing has stopped."""
        if self._superseded or (self._task is not None and self._task.done()):
            raise StaleEpoch(f"worker {self._record.worker_id}, epoch {self._record.epoch}, no longer has its lease")

    async def register(self) -> int:
        """Takes the lease, starts to renew it, gives the epoch. Raises Unavailable when Redis does not answer."""
        async with self._turn:
            epoch = await self._take()
        self._task = asyncio.create_task(self._renew_forever(), name="gemline-lease")
        return epoch

    async def drain(self) -> None:
        """Says that no new work is taken. When Redis is away it is said with the next renewal."""
        self._record = replace(self._record, state=State.DRAINING)
        with contextlib.suppress(Unavailable):
            await self._renew_once(publish=True)

    async def withdraw(self) -> None:
        """Gives the lease back and stops renewing. When Redis is away the lease runs out by itself."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._valid_until = float("-inf")
        args = (self._record.worker_id, self._record.epoch, scripts.CHANNEL)
        with contextlib.suppress(Unavailable):
            async with calling(self._redis):
                await self._withdraw(keys=scripts.KEYS, args=args)

    async def _take(self) -> int:
        sent_at = time.monotonic()
        async with calling(self._redis):
            epoch = int(await self._register(keys=scripts.KEYS, args=self._arguments()))
        self._record = replace(self._record, epoch=epoch)
        self._on_epoch(epoch)
        self._valid_until = sent_at + self._ttl_s
        return epoch

    async def _renew_once(self, *, publish: bool = False) -> None:
        async with self._turn:
            await self._renew_or_take(publish)

    async def _renew_or_take(self, publish: bool) -> None:
        sent_at = time.monotonic()
        args = (*self._arguments(), self._record.epoch, int(publish))
        try:
            async with calling(self._redis):
                outcome = int(await self._renew(keys=scripts.KEYS, args=args))
        except Unavailable:
            # Redis is away, this process is awake: running streams go on, as everybody keeps the last view of us.
            if self.valid:
                self._valid_until = time.monotonic() + self._ttl_s
            raise
        if outcome == 1:
            self._valid_until = sent_at + self._ttl_s
        elif outcome == 0:
            logger.warning("the lease of worker %s was lost; registering again", self._record.worker_id)
            await self._take()
        else:
            self._superseded = True
            self._valid_until = float("-inf")

    def _arguments(self) -> tuple[str, str, int, str]:
        record = replace(self._record, epoch=0)  # Redis keeps the epoch beside it
        return record.worker_id, record.to_json(), round(self._ttl_s * 1000), scripts.CHANNEL

    async def _renew_forever(self) -> None:
        pause_s = self._renew_s
        while not self._superseded:
            await asyncio.sleep(pause_s)
            if self._load is not None:
                num_running, num_waiting = self._load()
                self._record = replace(self._record, num_running=num_running, num_waiting=num_waiting)
            try:
                await self._renew_once()
                pause_s = self._renew_s
            except Unavailable as error:
                logger.warning("lease not renewed: %s", error)
                pause_s = self._renew_s / 4
        logger.error("another process took the name of worker %s; stop serving", self._record.worker_id)


class WorkersView:
    """All workers whose lease stands, in memory: pub/sub for speed, a full read every `resync_s` for truth.

    While Redis is away the last snapshot stays.
    """

    def __init__(self, redis: Redis, resync_s: float = RESYNC_S) -> None:
        self._redis = redis
        self._resync_s = resync_s
        self._list = redis.register_script(scripts.LIST)
        self._records: tuple[WorkerRecord, ...] = ()
        self._callbacks: list[Callable[[], None]] = []
        self._task: asyncio.Task[None] | None = None
        self._reachable = True

    async def start(self) -> None:
        """Reads all workers once and begins to follow them. Raises Unavailable when Redis does not answer."""
        await self._resync()
        self._task = asyncio.create_task(self._follow(), name="gemline-workers-view")

    async def stop(self) -> None:
        """Follows no more; the snapshot stays readable."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def workers(self, role: Role, model_id: str | None = None) -> tuple[WorkerRecord, ...]:
        """The workers of a role, of one model or of all, draining ones included, by worker_id."""
        return tuple(
            record
            for record in self._records
            if record.role is role and (model_id is None or record.model.model_id == model_id)
        )

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls `callback` in the event loop after every change of any record, load included."""
        self._callbacks.append(callback)

    async def _resync(self) -> None:
        async with calling(self._redis):
            records, epochs = await self._list(keys=scripts.KEYS, args=())
        found = (_readable(record, epoch) for record, epoch in zip(records, epochs, strict=True))
        known = (record for record in found if record is not None)
        self._replace(tuple(sorted(known, key=lambda record: record.worker_id)))

    def _replace(self, records: tuple[WorkerRecord, ...]) -> None:
        if records == self._records:
            return
        self._records = records
        for callback in self._callbacks:
            try:
                callback()
            except Exception:  # one listener's fault must not end the view of the others
                logger.exception("a listener to the workers failed")

    async def _follow(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as events:
                    await self._follow_events(events)
            except Unavailable as error:
                if self._reachable:
                    logger.warning("keeping the workers known so far: %s", error)
                self._reachable = False
                await asyncio.sleep(self._resync_s)

    async def _follow_events(self, events: PubSub) -> None:
        async with calling(self._redis):
            await events.subscribe(scripts.CHANNEL)
        while True:
            await self._resync()
            if not self._reachable:
                logger.warning("Redis is back; following the workers again")
            self._reachable = True
            async with calling(self._redis, self._resync_s + TIMEOUT_S):
                await events.get_message(timeout=self._resync_s)


def _readable(text: bytes, epoch: bytes) -> WorkerRecord | None:
    """The record, or None when it is of a version that this one cannot read: then it is not for us."""
    try:
        return replace(WorkerRecord.from_json(text), epoch=int(epoch))
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("a worker's record cannot be read (%s) and is left out: %.200r", type(error).__name__, text)
        return None
