"""install, upgrade, rollback and uninstall by Helm's own library, against an API server: what is there afterwards."""

import copy
import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import HelmError
from kubernetes import client
from support.chart import CHART, PROFILES, changed, manifests
from support.cluster import RELEASE, Cluster, Objects, give_secrets, holds, secret, secrets_named
from support.kube_kinds import BY_NAME, BY_RESOURCE, refusal

from gemline.rollout.kube import Kube

NEW_IMAGE = {"images__gateway__tag": "0.2.0", "images__worker__tag": "0.2.0"}


def ours(cluster: Cluster) -> Objects:
    """But for the Secrets that were there before."""
    return {key: body for key, body in cluster.objects().items() if key[0] != "Secret"}


def rendered(namespace: str, values: dict[str, Any]) -> Objects:
    """What is applied, and stays: hooks do not."""
    listed = manifests(values, namespace=namespace)
    found = [it for it in listed if "helm.sh/hook" not in it["metadata"].get("annotations", {})]
    return {(it["kind"], it["metadata"]["name"]): it for it in found}


def content(objects: Objects) -> Objects:
    """Without what a server notes down for itself."""
    found = copy.deepcopy(objects)
    for body in found.values():
        body.pop("status", None)
        for name in ("managedFields", "resourceVersion", "generation"):
            body["metadata"].pop(name, None)
    return found


@pytest.mark.parametrize("profile", PROFILES)
def test_install_makes_what_the_chart_renders_and_nothing_else_and_uninstall_takes_it_away(
    cluster: Cluster, jobs: list[str], profile: str
) -> None:
    values = PROFILES[profile]
    give_secrets(cluster, values)
    with cluster.helm() as helm:
        helm.install(values)
        there, wanted = ours(cluster), rendered(cluster.namespace, values)
        assert there.keys() == wanted.keys()
        for key, body in wanted.items():
            assert holds(there[key], body), key
        helm.uninstall()
    assert ours(cluster) == {}


def test_a_new_image_changes_the_gateway_and_the_ray_service_alone_and_rollback_takes_it_back(
    cluster: Cluster,
) -> None:
    give_secrets(cluster, PROFILES["cpu"])
    with cluster.helm() as helm:
        helm.install(PROFILES["cpu"])
        before = content(ours(cluster))
        helm.upgrade(changed("cpu", **NEW_IMAGE))
        after = content(ours(cluster))
        assert after.keys() == before.keys()
        different = {key for key in after if after[key] != before[key]}
        assert different == {("Deployment", "gemline-gateway"), ("RayService", "gemline")}
        assert _image(after["Deployment", "gemline-gateway"]) == "gemline-gateway:0.2.0"
        helm.rollback()
        assert content(ours(cluster)) == before


def _image(deployment: dict[str, Any]) -> str:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return str(container["image"])


def test_from_each_profile_to_the_next_upgrades_leave_what_is_rendered(cluster: Cluster, jobs: list[str]) -> None:
    for values in PROFILES.values():
        for name, keys in secrets_named(manifests(values)).items():
            if ("Secret", name) not in cluster.objects():
                cluster.make(secret(name, keys))
    first, *others = [changed(name, redis__storage={"size": "8Gi"}) for name in PROFILES]
    with cluster.helm() as helm:
        helm.install(first)
        for values in (*others, first):
            helm.upgrade(values)
            assert ours(cluster).keys() == rendered(cluster.namespace, values).keys()


def test_from_any_profile_to_any_other_nothing_is_changed_that_may_not_be() -> None:
    num_common = 0
    for first, second in itertools.permutations(PROFILES, 2):
        values = (changed(name, redis__storage={"size": "8Gi"}) for name in (first, second))
        old, new = (rendered("t", it) for it in values)
        for key in old.keys() & new.keys():
            num_common += 1
            kind = BY_NAME[new[key]["apiVersion"], key[0]]
            assert refusal(kind, new[key], old[key]) is None, (first, second)
    assert num_common > 100


def test_an_upgrade_leaves_the_number_of_gateways_to_the_autoscaler(cluster: Cluster) -> None:
    values = changed("cpu", gateway__autoscaling__enabled=True)
    give_secrets(cluster, values)
    with cluster.helm() as helm:
        helm.install(values)
        cluster.patch(BY_RESOURCE["deployments.apps"], "gemline-gateway", {"spec": {"replicas": 7}})
        helm.upgrade(values | {"images": {"gateway": {"repository": "gemline-gateway", "tag": "0.2.0"}}})
        gateway = cluster.objects()["Deployment", "gemline-gateway"]
        assert (gateway["spec"]["replicas"], _image(gateway)) == (7, "gemline-gateway:0.2.0")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "by the schema": ({"gateway__replica": 2}, "replica"),
    "by a template": ({"models__0__topology": "colocated"}, "prefill: is there"),
    "a Secret that is not there": (
        {"gateway__adminKey": {"existingSecret": "operators"}},
        r"gateway\.adminKey\.existingSecret: namespace t-\w+ has no Secret operators; make it first, with admin-key",
    ),
    "a Secret without the key": (
        {"redis__passwordKey": "pass"},
        r"redis\.existingSecret: Secret gemline-redis of namespace t-\w+ has no key pass, but redis-password",
    ),
    "a registry's Secret that is not there": (
        {"imagePullSecrets": ["registry"]},
        r"imagePullSecrets\[0\]: .* registry",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_are_refused_change_nothing(cluster: Cluster, case: str) -> None:
    changes, words = REFUSED[case]
    cluster.make(secret("gemline-redis", ["redis-password"]))
    with cluster.helm() as helm:
        before = cluster.objects()
        with pytest.raises(HelmError, match=words):
            helm.install(changed("cpu", **changes))
        assert cluster.objects() == before
        helm.install(PROFILES["cpu"])
        before = cluster.objects()
        with pytest.raises(HelmError, match=words):
            helm.upgrade(changed("cpu", **changes))
        assert cluster.objects() == before


def test_a_refused_install_sends_no_request_that_could_write(stand_in_alone: Cluster) -> None:
    """A real API server tells nobody of its requests."""
    assert stand_in_alone.fake is not None
    asked = stand_in_alone.fake.verbs
    asked.clear()
    with (
        stand_in_alone.helm() as helm,
        pytest.raises(HelmError, match=r"redis\.existingSecret: namespace .* has no Secret"),
    ):
        helm.install(PROFILES["cpu"])
    assert dict(asked) == {"secrets": {"list"}}


def test_who_may_not_list_secrets_is_told_the_value_that_goes_without(stand_in_alone: Cluster) -> None:
    """On a real API server Helm keeps its releases in Secrets, and lists them."""
    assert stand_in_alone.fake is not None
    stand_in_alone.fake.forbidden.add(("secrets", "list"))
    with stand_in_alone.helm() as helm:
        with pytest.raises(HelmError, match=r'"gemline\.checkSecrets" at <lookup .*may not list secrets'):
            helm.install(PROFILES["cpu"])
        helm.install(changed("cpu", checkSecrets=False))
    assert stand_in_alone.fake.verbs["secrets"] == {"list"}, "the one that was refused"


def test_a_claim_that_kubernetes_would_not_change_is_refused_before_anything_is(cluster: Cluster) -> None:
    give_secrets(cluster, PROFILES["cpu"])
    with cluster.helm() as helm:
        helm.install(PROFILES["cpu"])
        before = cluster.objects()
        with pytest.raises(HelmError, match=r"redis\.storage\.size: is 2Gi, was 1Gi, .*claim data-gemline-redis-0"):
            helm.upgrade(changed("cpu", redis__storage__size="2Gi", **NEW_IMAGE))
        assert cluster.objects() == before


def test_a_claim_of_the_same_size_in_another_unit_is_no_change(cluster: Cluster) -> None:
    give_secrets(cluster, PROFILES["cpu"])
    with cluster.helm() as helm:
        helm.install(PROFILES["cpu"])
        for same in ("1024Mi", "1048576Ki", "1073741824", "1Gi"):
            assert helm.render(changed("cpu", redis__storage__size=same)), same
        with pytest.raises(HelmError, match=r"redis\.storage\.size: is 1G, was 1Gi"):
            helm.render(changed("cpu", redis__storage__size="1G"))


# What a release of before they came does not know of.
NEWER = (
    "rollout",
    "checkSecrets",
    "gateway.shareWithoutRedis",
    "internalTls.job.schedule",
    "redis.storage.storageClassName",
)


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The chart without those values; one object stands for all that it makes."""
    chart = tmp_path / "gemline"
    (chart / "templates").mkdir(parents=True)
    shutil.copy(CHART / "Chart.yaml", chart)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for path in NEWER:
        *parents, last = path.split(".")
        place = values
        for key in parents:
            place = place[key]
        del place[last]
    (chart / "values.yaml").write_text(yaml.safe_dump(values))
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "gemline"}}
    (chart / "templates" / "account.yaml").write_text(yaml.safe_dump(account))
    return chart


def test_an_upgrade_with_an_older_charts_defaults_names_all_that_is_missing_and_changes_nothing(
    cluster: Cluster, older: Path
) -> None:
    """`--reuse-values` is that, by Helm's design."""
    give_secrets(cluster, PROFILES["cpu"])
    with cluster.helm() as helm:
        helm.config.install(older, RELEASE, PROFILES["cpu"], timeout=60)
        before = cluster.objects()
        with pytest.raises(HelmError) as refused:
            helm.config.upgrade(CHART, RELEASE, {}, reuse_values=True, timeout=60)
        assert cluster.objects() == before
        for path in NEWER:
            *parents, last = path.split(".")
            place = "/".join(["", *parents])
            assert re.search(f"at '{place}': missing propert.*'{last}'", str(refused.value)), path
        helm.config.upgrade(CHART, RELEASE, timeout=60)  # the new chart's defaults, and the release's own values
        assert ours(cluster).keys() == rendered(cluster.namespace, PROFILES["cpu"]).keys()


async def test_after_a_rollout_was_paused_and_gone_on_with_helm_still_upgrades(cluster: Cluster) -> None:
    give_secrets(cluster, PROFILES["cpu"])
    kube = Kube(_client(cluster), cluster.namespace)
    with cluster.helm() as helm:
        helm.install(PROFILES["cpu"])
        old = cluster.objects()["RayService", "gemline"]["spec"]["rayClusterConfig"]
        helm.upgrade(changed("cpu", **NEW_IMAGE))
        # As `gemline rollout` does with pause and rollback.
        await kube.patch_service("gemline", {"spec": {"upgradeStrategy": {"type": "None"}}})
        await kube.patch_deployment("gemline-gateway", {"spec": {"paused": True}})
        await kube.patch_service("gemline", {"spec": {"rayClusterConfig": old}})
        helm.upgrade(changed("cpu", images__gateway__tag="0.3.0", images__worker__tag="0.3.0"))
    there = cluster.objects()
    assert there["RayService", "gemline"]["spec"]["upgradeStrategy"] == {"type": "NewCluster"}
    head = there["RayService", "gemline"]["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert head["template"]["spec"]["containers"][0]["image"] == "gemline-worker-cpu:0.3.0"
    assert there["Deployment", "gemline-gateway"]["spec"]["paused"] is True  # it is nobody's but the operator's


async def test_a_change_that_keeps_a_field_for_itself_would_stand_in_helms_way(cluster: Cluster) -> None:
    """What the last test guards against, done by somebody else."""
    give_secrets(cluster, PROFILES["cpu"])
    with cluster.helm() as helm:
        helm.install(PROFILES["cpu"])
        cluster.patch(BY_NAME["ray.io/v1", "RayService"], "gemline", {"spec": {"upgradeStrategy": {"type": "None"}}})
        with pytest.raises(HelmError, match="conflict"):
            helm.upgrade(changed("cpu", **NEW_IMAGE))


def _client(cluster: Cluster) -> client.ApiClient:
    configuration = client.Configuration(host=cluster.url)
    configuration.verify_ssl = False
    configuration.api_key["authorization"] = f"Bearer {cluster.token}"
    return client.ApiClient(configuration)
