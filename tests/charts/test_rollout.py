"""What the chart grants to `gemline rollout` is what it asks for, no more and no less."""

from support.chart import PROFILES, changed, manifests, of_kind, selects

from gemline.rollout.kube import RBAC_VERBS


def test_the_verbs_granted_are_those_used() -> None:
    all_of_them = manifests(changed("cpu", rollout__enabled=True))
    (role,) = of_kind(all_of_them, "Role")
    granted = {
        ".".join(part for part in (resource, group) if part): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
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
