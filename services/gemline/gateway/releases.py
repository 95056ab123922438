"""Which release of a model's workers takes a request: a canary's share, the same on every gateway. Follows Redis."""

import asyncio
import hashlib
import logging
from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from gemline.cluster.records import ModelCard, Role, State, WorkerRecord
from gemline.cluster.releases import ReleaseShares, Shares
from gemline.cluster.workers import WorkersView
from gemline.errors import GemlineError
from gemline.gateway.routing import Life

FRESH_S = 0.5  # a share that was changed counts after this long: to take a release back is to be quick

log = logging.getLogger(__name__)


class Pick(NamedTuple):
    """A release, and what its workers serve."""

    release: str
    card: ModelCard


class Split:
    """How one model's requests are shared out among the releases whose workers take requests now. Never changes.

    Requests of one key go to one release. As a release's share grows it keeps the keys it had. A session stays with
    the worker that has it, its owner, as long as that one's release is to have any request. While no release that
    should have requests has a worker, or nobody has said which should, the oldest that has takes them all.
    """

    def __init__(self, ready: Sequence[WorkerRecord], shares: Shares | None) -> None:
        """`ready` is not empty."""
        by_age = {record.release: record for record in sorted(ready, key=lambda record: record.epoch, reverse=True)}
        wanted = {name: share for name, share in sorted((shares or {}).items()) if share > 0 and name in by_age}
        wanted = wanted or {min(by_age.values(), key=lambda record: record.epoch).release: 1.0}
        self._ends = list(accumulate(wanted.values()))
        self._picks = [Pick(name, by_age[name].model) for name in wanted]
        by_name = {pick.release: pick for pick in self._picks}
        lives = ((Life(it.worker_id, it.epoch), it.release) for it in ready)
        self._owned = {life: by_name[release] for life, release in lives if release in by_name}

    @property
    def releases(self) -> frozenset[str]:
        """Those that have any request."""
        return frozenset(pick.release for pick in self._picks)

    def pick(self, key: str, owner: Life | None = None) -> Pick:
        """The release for a request."""
        if len(self._picks) == 1:
            return self._picks[0]
        if owner is not None and owner in self._owned:
            return self._owned[owner]
        point = _point(key) * self._ends[-1]
        return self._picks[min(bisect(self._ends, point), len(self._picks) - 1)]


def _point(key: str) -> float:
    """Of [0, 1), the same everywhere."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "replace")).digest()[:6]) / 2**48


class Releases:
    """Follows the shares; while Redis is away, those known hold."""

    def __init__(
        self,
        view: WorkersView,
        registry: ReleaseShares | None,
        on_change: Callable[[], None] = lambda: None,
        fresh_s: float = FRESH_S,
    ) -> None:
        """Without a registry every model is served by its oldest release. `on_change` hears of every change."""
        self._view = view
        self._registry = registry
        self._on_change = on_change
        self._fresh_s = fresh_s
        self._shares: dict[str, Shares] = {}
        self._splits: dict[str, Split | None] = {}  # by model, until something changes
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the shares, and follow them until `stop`."""
        if self._registry is not None:
            await self._refresh(self._registry)
            self._following = asyncio.create_task(self._follow(self._registry), name="shares of releases")

    def stop(self) -> None:
        """Follow them no longer."""
        if self._following is not None:
            self._following.cancel()

    def follow(self) -> None:
        """To be called when workers have come, gone or changed."""
        self._splits.clear()

    def pick(self, model_id: str, key: str, owner: Life | None) -> Pick | None:
        """The release for a request; None while no worker takes any."""
        split = self._split(model_id)
        return None if split is None else split.pick(key, owner)

    def takes_part(self, record: WorkerRecord) -> bool:
        """Whether requests for the worker's model may go to it at all."""
        split = self._split(record.model.model_id)
        return split is None or record.release in split.releases

    def _split(self, model_id: str) -> Split | None:
        if model_id not in self._splits:
            ready = [it for it in self._view.workers(Role.DECODE, model_id) if it.state is State.READY]
            self._splits[model_id] = Split(ready, self._shares.get(model_id)) if ready else None
        return self._splits[model_id]

    async def _follow(self, registry: ReleaseShares) -> None:
        while True:
            await asyncio.sleep(self._fresh_s)
            await self._refresh(registry)

    async def _refresh(self, registry: ReleaseShares) -> None:
        try:
            shares = await registry.all()
        except GemlineError as error:
            log.warning("shares of releases cannot be read, those known still hold: %s", error)
            return
        except Exception:
            log.exception("shares of releases cannot be read, those known still hold")
            return
        if shares != self._shares:
            self._shares = shares
            self._splits.clear()
            self._on_change()
