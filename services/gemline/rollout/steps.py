"""The steps of a rollout: look, wait, pause, promote by a share or whole, take back. A failed check changes nothing."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gemline.cluster.records import Role, State, WorkerRecord
from gemline.cluster.releases import ReleaseShares, Shares
from gemline.cluster.workers import WorkersView
from gemline.errors import Conflict, DeadlineExceeded, NotFound
from gemline.rollout import golden
from gemline.rollout.handshake import can_share_streams, models_of, objections, variant
from gemline.rollout.kube import Kube
from gemline.rollout.objects import NEW_CLUSTER, NO_UPGRADE, Objects, find
from gemline.rpc.options import OpenChannel

_GOLDEN = "golden.json"  # variant -> token ids
_STRATEGY = "strategy"  # of the RayService, before it was paused
_POLL_S = 0.5
# Gateways hear of new shares after half a second, and a lease tells its worker's load every two.
QUIET_S = 5.0


@dataclass(frozen=True, slots=True)
class Found:
    """A release now: its objects, its workers, and the shares that gateways follow."""

    objects: Objects
    new: tuple[WorkerRecord, ...]
    old: tuple[WorkerRecord, ...]
    shares: dict[str, Shares]

    @property
    def num_on_old(self) -> int:
        """Requests that the old workers still have, as their leases say."""
        return sum(it.num_running + it.num_waiting for it in self.old if it.role is Role.DECODE)


class Rollout:
    """Of one Helm release. `report` gets a line whenever there is news."""

    def __init__(
        self,
        kube: Kube,
        view: WorkersView,
        shares: ReleaseShares,
        release: str,
        open_channel: OpenChannel,
        report: Callable[[str], None] = lambda line: None,
        quiet_s: float = QUIET_S,
    ) -> None:
        """The view must have been started. Old workers have finished when they say so for `quiet_s`."""
        self._kube = kube
        self._view = view
        self._shares = shares
        self._release = release
        self._open_channel = open_channel
        self._report = report
        self._quiet_s = quiet_s

    async def look(self) -> Found:
        """Raises NotFound when there is no such release."""
        objects = await find(self._kube, self._release)
        workers = [record for role in Role for record in self._view.workers(role)]
        new = tuple(record for record in workers if record.release == objects.new)
        old = tuple(record for record in workers if record.release in objects.old)
        return Found(objects, new, old, await self._shares.all())

    async def wait(self, timeout_s: float) -> Found:
        """Until gateways are replaced and the new workers could take over. Raises DeadlineExceeded with what lacks."""
        try:
            async with asyncio.timeout(timeout_s):
                told = ""
                while lacks := _lacking(found := await self.look()):
                    if lacks != told:
                        self._report(lacks)
                    told = lacks
                    await asyncio.sleep(_POLL_S)
                return found
        except TimeoutError:
            raise DeadlineExceeded(f"after {timeout_s:g} s: {told or 'nobody has answered'}") from None

    async def pause(self) -> Found:
        """Replace nothing more, and leave all requests where they are; `promote` and `rollback` go on."""
        found = await self.look()
        objects = found.objects
        await self._pin(found)
        if objects.strategy != NO_UPGRADE:
            await self._note(objects, {_STRATEGY: objects.strategy})
            await self._kube.patch_service(objects.service_name, {"spec": {"upgradeStrategy": {"type": NO_UPGRADE}}})
        await self._kube.patch_deployment(objects.gateway_name, {"spec": {"paused": True}})
        return await self.look()

    async def promote(self, share: float, drain_timeout_s: float, *, record_golden: bool = False) -> Found:
        """So much to the new workers, once they have passed; with all of it the old ones finish, and go.

        Raises Conflict, which says which check failed: nothing has changed then.
        """
        found = await self.look()
        await self._check(found, record_golden=record_golden)
        await self._resume(found.objects)
        for model_id in models_of(found.new):
            await self._shares.put(model_id, _shared_out(found, model_id, share))
        self._report(f"{found.objects.new} has {share:.0%} of new requests")
        if share < 1:
            return await self.look()
        return await self._see_out(drain_timeout_s)

    async def rollback(self) -> Found:
        """All requests to the old workers, at once; then the old configuration. Raises Conflict without old workers."""
        found = await self.look()
        models = [model_id for model_id in models_of(found.old) if _serving(found.old, model_id)]
        if not models:
            raise Conflict(
                f"release {self._release} has no old workers that could serve: only {found.objects.new or 'nothing'}"
                " is there; `helm rollback` starts others"
            )
        for model_id in models:
            await self._shares.put(model_id, _shared_out(found, model_id, 0.0))
        self._report(f"{found.objects.old[0]} has all new requests again")
        await self._resume(found.objects, found.objects.back_to(_serving(found.old, models[0])[0].release))
        self._report(f"run `helm rollback {self._release}`, so that Helm's own record agrees")
        return await self.look()

    async def _check(self, found: Found, *, record_golden: bool) -> None:
        if not found.objects.new:
            raise NotFound(f"RayService {found.objects.service_name} has no Ray cluster yet")
        if words := objections(found.new, found.old):
            raise Conflict(f"handshake of {found.objects.new}: " + "; ".join(words))
        how = "can go on at the new ones" if can_share_streams(found.new, found.old) else "end where they are"
        self._report(f"handshake: passed; streams of the old workers {how}")
        await self._check_golden(found, record_golden=record_golden)

    async def _check_golden(self, found: Found, *, record_golden: bool) -> None:
        notes = await self._kube.notes(found.objects.notes_name)
        known: dict[str, list[int]] = json.loads(notes.get(_GOLDEN, "{}"))
        fresh = dict[str, list[int]]()
        for record in _decoding(found.new):
            key = variant(record.model)
            given = await golden.answer(record, self._open_channel)
            right = known.get(key) or fresh.get(key) or await self._golden_of(found.old, key)
            if right is None and not record_golden:
                raise Conflict(
                    f"golden answer: none is known for {key} of model {record.model.model_id}; worker"
                    f" {record.worker_id} gives {given}: --record-golden takes it for right from now on"
                )
            right = fresh[key] = given if right is None else right
            if given != right:
                raise Conflict(f"golden answer: {record.worker_id} of {record.release} gives {given}, not {right}")
        self._report(f"golden answer: passed by {len(_decoding(found.new))} workers")
        if any(key not in known for key in fresh):
            await self._note(found.objects, {_GOLDEN: json.dumps(known | fresh, sort_keys=True)})

    async def _golden_of(self, old: Sequence[WorkerRecord], key: str) -> list[int] | None:
        """What the workers in service answer, if one of them is of that variant."""
        alike = next((it for it in _decoding(old) if variant(it.model) == key), None)
        return None if alike is None else await golden.answer(alike, self._open_channel)

    async def _see_out(self, timeout_s: float) -> Found:
        """Until the old workers have finished; their clusters go, but for one that KubeRay has yet to let go of."""
        clock = asyncio.get_running_loop().time
        num, told, busy_s = 0, -1, clock()
        try:
            async with asyncio.timeout(timeout_s):
                while (num := (found := await self.look()).num_on_old) or clock() - busy_s < self._quiet_s:
                    if num:
                        busy_s = clock()
                    if num != told:
                        self._report(f"the old workers have {num} requests")
                    told = num
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the old workers still have {num} requests after {timeout_s:g} s; they are left as they are, and get"
                " no new ones: `promote` again goes on"
            ) from None
        for cluster in found.objects.old:
            if cluster == found.objects.active:
                self._report(f"{cluster} has finished; KubeRay removes it when {found.objects.pending} is ready")
                continue
            await self._kube.delete_cluster(cluster)
            self._report(f"{cluster} has finished and is removed")
        return found

    async def _pin(self, found: Found) -> None:
        """Writes down which release serves each model now, where nobody has said so."""
        serving = [*found.old, *found.new]
        for model_id in models_of(serving):
            if model_id not in found.shares and (there := _serving(serving, model_id)):
                oldest = min(there, key=lambda record: record.epoch)
                await self._shares.put(model_id, {oldest.release: 1.0})

    async def _resume(self, objects: Objects, spec: dict[str, object] | None = None) -> None:
        """Ends a pause; `spec` is patched into the RayService too."""
        body = dict(spec or {})
        if objects.strategy == NO_UPGRADE:
            notes = await self._kube.notes(objects.notes_name)
            body["upgradeStrategy"] = {"type": notes.get(_STRATEGY, NEW_CLUSTER)}
        if body:
            await self._kube.patch_service(objects.service_name, {"spec": body})
        if objects.gateway["spec"].get("paused"):
            await self._kube.patch_deployment(objects.gateway_name, {"spec": {"paused": False}})

    async def _note(self, objects: Objects, data: dict[str, str]) -> None:
        labels = {"app.kubernetes.io/name": "gemline", "app.kubernetes.io/instance": self._release}
        await self._kube.note(objects.notes_name, labels, data)


def _lacking(found: Found) -> str:
    """What is not yet as it should be; empty: all is."""
    if found.objects.is_paused:
        return "the rollout is paused: `promote` goes on"
    if words := found.objects.gateways_behind:
        return f"gateway {found.objects.gateway_name}: {words}"
    return "; ".join(objections(found.new, found.old))


def _shared_out(found: Found, model_id: str, share: float) -> dict[str, float]:
    """The rest is for the newest old release that serves the model; without one the new release has all."""
    there = _serving(found.old, model_id)
    by_age = [name for name in found.objects.old if name in {it.release for it in there}]
    if not by_age:
        return {found.objects.new: 1.0}
    return {found.objects.new: share, by_age[0]: 1 - share}


def _serving(records: Sequence[WorkerRecord], model_id: str) -> list[WorkerRecord]:
    return [it for it in _decoding(records) if it.model.model_id == model_id]


def _decoding(records: Sequence[WorkerRecord]) -> list[WorkerRecord]:
    return [it for it in records if it.role is Role.DECODE and it.state is State.READY]
