"""What the chart grants to `gemline rollout` is what it asks for, no more and no less."""

import pytest
from kubernetes import client
from support.chart import PROFILES, changed, containers, manifests, of_kind, pods, selects
from support.cluster import Cluster, give_secrets
from support.own_command import group_params

from gemline.errors import Forbidden
from gemline.rollout.kube import RBAC_VERBS, Kube


def test_the_verbs_granted_are_those_used() -> None:
    all_of_them = manifests(changed("cpu", rollout__enabled=True))
    (role,) = of_kind(all_of_them, "Role")
    granted: dict[str, set[str]] = {}
    for rule in role["rules"]:
        (group,), (resource,) = rule["apiGroups"], rule["resources"]
        granted.setdefault(".".join(part for part in (resource, group) if part), set()).update(rule["verbs"])
    assert granted == {name: set(verbs) for name, verbs in RBAC_VERBS.items()}
    (binding,) = of_kind(all_of_them, "RoleBinding")
    accounts = [it["metadata"]["name"] for it in of_kind(all_of_them, "ServiceAccount")]
    assert binding["subjects"][0]["name"] in accounts
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_pods_of_the_rollout_reach_the_api_server_redis_and_workers() -> None:
    policies = of_kind(manifests(changed("cpu", rollout__enabled=True)), "NetworkPolicy")
    labels = {"gemline.dev/release": "gemline", "gemline.dev/part": "rollout"}
    # Those that hold such a pod, by what they let it do.
    held = {it["metadata"]["name"] for it in policies if selects(it["spec"]["podSelector"], labels)}
    assert {"gemline-deny", "gemline-dns", "gemline-to-redis", "gemline-api-server"} <= held


def test_nothing_is_granted_unless_asked_for() -> None:
    all_of_them = manifests(PROFILES["cpu"])
    assert not of_kind(all_of_them, "Role") + of_kind(all_of_them, "RoleBinding")
    names = [it["metadata"]["name"] for it in of_kind(all_of_them, "NetworkPolicy")]
    assert not [name for name in names if name.endswith(("-rollout", "-api-server"))]


async def test_its_account_may_change_its_own_release_and_no_other(cluster: Cluster) -> None:
    values = changed("cpu", rollout__enabled=True)
    give_secrets(cluster, values)
    with cluster.helm() as helm:
        helm.install(values)
    configuration = client.Configuration(host=cluster.url)
    configuration.verify_ssl = False
    configuration.api_key["authorization"] = f"Bearer {cluster.account_token('gemline-rollout')}"
    kube = Kube(client.ApiClient(configuration), cluster.namespace)
    await kube.note("gemline-rollout", {}, {"a": "b"})
    await kube.note("gemline-rollout", {}, {"c": "d"})
    assert await kube.notes("gemline-rollout") == {"a": "b", "c": "d"}
    await kube.patch_deployment("gemline-gateway", {"spec": {"paused": True}})
    await kube.patch_service("gemline", {"spec": {"upgradeStrategy": {"type": "None"}}})
    assert len(await kube.ray("rayservices", "app.kubernetes.io/name=gemline")) == 1
    for refused in (
        kube.patch_deployment("another", {}),
        kube.patch_service("another", {}),
        kube.notes("another"),
    ):
        with pytest.raises(Forbidden, match="another"):
            await refused


def test_the_pod_to_type_in_has_what_the_command_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of its variables are those that the command looks for."""
    all_of_them = manifests(changed("h100-9b", rollout__enabled=True))
    (template,) = [it for name, it in pods(all_of_them) if name == "Deployment gemline-rollout"]
    (container,) = containers(template)
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable.get("value", "secret"))
    params = group_params(["rollout"])
    assert params["redis_url"] == dict((it["name"], it.get("value")) for it in container["env"])["GEMLINE_REDIS_URL"]
    (mount,) = [it["mountPath"] for it in container["volumeMounts"] if it["name"] == "tls"]
    for option, file in (("certificate", "tls.crt"), ("key", "tls.key"), ("ca", "ca.crt")):
        assert params[f"internal_tls_{option}"] == f"{mount}/{file}"
    assert template["spec"]["automountServiceAccountToken"] is True
    assert template["spec"]["serviceAccountName"] == "gemline-rollout"
