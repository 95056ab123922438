"""Every step of a rollout, on real workers: what it does, what it refuses, and that refusing changes nothing."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from kubernetes import client
from rollout.conftest import World
from support.eventually import eventually
from support.hand_gateway import attached
from support.kube_api import FakeKube

from gemline.cluster.records import Role
from gemline.engine.params import SamplingParams
from gemline.errors import Conflict, DeadlineExceeded, Forbidden, NotFound, Unavailable
from gemline.rollout.kube import RBAC_VERBS, Kube


async def test_what_there_is_is_told_by_release(upgrade: World) -> None:
    await eventually(lambda: upgrade.num_known() == 2)
    found = await upgrade.rollout().look()
    assert (found.objects.new, found.objects.old) == ("new", ("old",))
    assert {it.release for it in found.new} == {"new"}
    assert {it.role for it in found.old} == {Role.DECODE, Role.TOKENIZATION}


async def test_a_release_that_is_not_there_is_named(world: World) -> None:
    with pytest.raises(NotFound, match="release 'prd' in namespace ns has 0 objects that are its gateway Deployment"):
        await world.rollout("prd").look()
    with pytest.raises(NotFound, match="in namespace elsewhere"):
        await world.rollout(namespace="elsewhere").look()


async def test_wait_says_what_lacks_and_ends_when_nothing_does(upgrade: World) -> None:
    status = upgrade.kube.get("deployments.apps", "prod-gemline")["status"]
    status["updatedReplicas"] = 1
    with pytest.raises(DeadlineExceeded, match="of 2 there are 2 replicas, 1 updatedReplicas, 2 availableReplicas"):
        await upgrade.rollout().wait(0.7)
    status["updatedReplicas"] = 2
    await upgrade.rollout().wait(30)
    await upgrade.hosts["new"][1].stop()
    await eventually(lambda: upgrade.num_known() == 1)
    with pytest.raises(DeadlineExceeded, match="no decode worker is ready"):
        await upgrade.rollout().wait(0.7)


async def test_pause_stops_both_and_promote_goes_on(upgrade: World) -> None:
    await eventually(lambda: upgrade.num_known() == 2)
    upgrade.kube.get("rayservices.ray.io", "prod-gemline")["spec"]["upgradeStrategy"]["type"] = (
        "NewClusterWithIncrementalUpgrade"
    )
    for _ in range(2):
        found = await upgrade.rollout().pause()
        assert found.objects.is_paused
        assert upgrade.kube.get("deployments.apps", "prod-gemline")["spec"]["paused"] is True
        assert upgrade.strategy == "None"
        assert await upgrade.shared() == {"old": 1.0}
    with pytest.raises(DeadlineExceeded, match="is paused"):
        await upgrade.rollout().wait(0.7)
    await upgrade.rollout().promote(0.2, 10, record_golden=True)
    assert upgrade.kube.get("deployments.apps", "prod-gemline")["spec"]["paused"] is False
    assert upgrade.strategy == "NewClusterWithIncrementalUpgrade"
    assert await upgrade.shared() == {"old": 0.8, "new": 0.2}


async def test_an_unknown_golden_answer_is_refused_until_it_is_recorded_and_kept_to_afterwards(upgrade: World) -> None:
    await eventually(lambda: upgrade.num_known() == 2)
    before = upgrade.snapshot()
    with pytest.raises(Conflict, match=r"golden answer: none is known for \w+/float32/none of model tiny.*--record"):
        await upgrade.rollout().promote(0.5, 10)
    assert (upgrade.snapshot(), await upgrade.shared()) == (before, {})
    await upgrade.rollout().promote(0.5, 10, record_golden=True)
    await upgrade.rollout().promote(0.6, 10)
    notes = upgrade.kube.get("configmaps", "prod-gemline-rollout")
    ((key, ids),) = json.loads(notes["data"]["golden.json"]).items()
    assert len(ids) == 16
    notes["data"]["golden.json"] = json.dumps({key: [*ids[:-1], ids[-1] + 1]})
    before = upgrade.snapshot()
    with pytest.raises(Conflict, match=rf"golden answer: decode-\w+ of new gives .*, not .*{ids[-1] + 1}\]$"):
        await upgrade.rollout().promote(1.0, 10, record_golden=True)
    assert (upgrade.snapshot(), await upgrade.shared()) == (before, {"old": 0.4, "new": 0.6})


async def test_old_workers_of_the_same_weights_say_what_is_right(world: World, tiny_checkpoint: Path) -> None:
    for cluster in ("old", "new"):
        await world.start(cluster, tiny_checkpoint)
    world.kuberay("old", "new")
    await eventually(lambda: world.num_known() == 2)
    await world.rollout().promote(0.5, 10)
    assert "handshake: passed; streams of the old workers can go on at the new ones" in world.lines


async def test_a_failed_handshake_names_both_values_and_changes_nothing(upgrade: World) -> None:
    await eventually(lambda: upgrade.num_known() == 2)
    host = upgrade.hosts["new"][1]
    lease = host._registered()  # a worker with a shorter context
    lease._record = replace(lease.record, model=replace(lease.record.model, context_length=7))
    await lease.drain()
    lease._record = replace(lease.record, state=host.record.state.READY)
    await lease._renew_once(publish=True)
    await eventually(lambda: 7 in {it.model.context_length for it in upgrade.view.workers(Role.DECODE)})
    before = upgrade.snapshot()
    with pytest.raises(Conflict, match=r"handshake of new: model tiny: context_length is 7, was \d+"):
        await upgrade.rollout().promote(1.0, 10, record_golden=True)
    assert (upgrade.snapshot(), await upgrade.shared()) == (before, {})


async def test_with_all_requests_gone_the_old_cluster_is_removed_once_it_has_finished(upgrade: World) -> None:
    await eventually(lambda: upgrade.num_known() == 2)
    found = await upgrade.rollout().promote(1.0, 10, record_golden=True)
    assert found.objects.old == ("old",)  # KubeRay has yet to let go of it
    upgrade.kuberay("new")
    record = upgrade.hosts["old"][1].record
    async with attached(record.address, record.epoch) as gateway:
        long = SamplingParams(max_tokens=10**6)
        await gateway.submit(1, [2, 5, 6], replace(long, max_tokens=record.model.context_length - 3, temperature=0.0))
        lease = upgrade.hosts["old"][1]._registered()
        lease._record = replace(lease.record, num_running=1)
        await lease._renew_once(publish=True)
        await eventually(lambda: any(it.num_running for it in upgrade.view.workers(Role.DECODE)))
        with pytest.raises(DeadlineExceeded, match="still have 1 requests"):
            await upgrade.rollout().promote(1.0, 0.7)
        assert ("rayclusters.ray.io", "ns", "old") in upgrade.kube.objects
    await eventually(lambda: not any(it.num_running for it in upgrade.view.workers(Role.DECODE)))
    await upgrade.rollout().promote(1.0, 10)
    assert ("rayclusters.ray.io", "ns", "old") not in upgrade.kube.objects
    assert ("rayclusters.ray.io", "ns", "new") in upgrade.kube.objects


async def test_rollback_gives_all_back_and_the_old_configuration_too(upgrade: World) -> None:
    await eventually(lambda: upgrade.num_known() == 2)
    spec = upgrade.kube.get("rayservices.ray.io", "prod-gemline")["spec"]
    spec["rayClusterConfig"] |= {"autoscalerOptions": {"version": "v2"}}  # which the old cluster has not
    await upgrade.rollout().pause()
    await upgrade.rollout().promote(0.7, 10, record_golden=True)
    await upgrade.rollout().rollback()
    assert await upgrade.shared() == {"old": 1.0, "new": 0.0}
    spec = upgrade.kube.get("rayservices.ray.io", "prod-gemline")["spec"]
    assert spec == {"upgradeStrategy": {"type": "NewCluster"}, "rayClusterConfig": {"rayVersion": "old"}}


async def test_without_old_workers_there_is_nothing_to_go_back_to(world: World, tiny_checkpoint: Path) -> None:
    await world.start("only", tiny_checkpoint)
    world.kuberay("only")
    await eventually(lambda: world.num_known() == 1)
    before = world.snapshot()
    with pytest.raises(Conflict, match="release prod has no old workers that could serve: only only is there"):
        await world.rollout().rollback()
    assert world.snapshot() == before
    await world.rollout().promote(0.3, 10, record_golden=True)
    assert await world.shared() == {"only": 1.0}  # there is nobody to have the rest


async def everything(world: World) -> None:
    await world.rollout().pause()
    await world.rollout().promote(0.5, 10, record_golden=True)
    await world.rollout().wait(10)
    await world.rollout().rollback()
    world.kuberay("new")
    await world.rollout().promote(1.0, 10)


async def test_a_role_needs_exactly_the_verbs_that_are_written_down(upgrade: World) -> None:
    await eventually(lambda: upgrade.num_known() == 2)
    await everything(upgrade)
    assert {resource: frozenset(verbs) for resource, verbs in upgrade.kube.verbs.items()} == RBAC_VERBS


CALLS: dict[tuple[str, str], Callable[[Kube], Awaitable[object]]] = {
    ("deployments.apps", "list"): lambda kube: kube.deployments("a=b"),
    ("deployments.apps", "patch"): lambda kube: kube.patch_deployment("prod-gemline", {}),
    ("rayservices.ray.io", "list"): lambda kube: kube.ray("rayservices", "a=b"),
    ("rayservices.ray.io", "patch"): lambda kube: kube.patch_service("prod-gemline", {}),
    ("rayclusters.ray.io", "list"): lambda kube: kube.ray("rayclusters", "a=b"),
    ("rayclusters.ray.io", "delete"): lambda kube: kube.delete_cluster("old"),
    ("configmaps", "get"): lambda kube: kube.notes("notes"),
    ("configmaps", "create"): lambda kube: kube.note("notes", {}, {}),
    ("configmaps", "patch"): lambda kube: kube.note("notes", {}, {}),
}


@pytest.mark.parametrize(("resource", "verb"), CALLS, ids=" ".join)
async def test_a_verb_that_is_not_allowed_is_named(kube: FakeKube, resource: str, verb: str) -> None:
    kube.forbidden.add((resource, verb))
    configuration = client.Configuration(host=kube.url)
    with pytest.raises(Forbidden, match=rf"^may not {verb} {resource}.* in namespace ns: a Role"):
        await CALLS[resource, verb](Kube(client.ApiClient(configuration), "ns"))


def test_every_verb_is_tried() -> None:
    assert CALLS.keys() == {(resource, verb) for resource, verbs in RBAC_VERBS.items() for verb in verbs}


async def test_an_api_server_that_is_away_is_told_in_one_line(world: World) -> None:
    world.kube.url = "http://127.0.0.1:1"
    with pytest.raises(Unavailable, match=r"cannot list .* in namespace ns: the API server does not answer"):
        await world.rollout().look()
