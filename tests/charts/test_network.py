"""Who reaches whom: the NetworkPolicies, worked out as a cluster would, over the labels that our pods really have."""

from typing import Any, NamedTuple

import pytest
from support.chart import PROFILES, changed, containers, manifests, of_kind, pods, selects

PARTS = ("gateway", "ray-head", "tokenization", "prefill", "decode", "redis", "rollout", "test")


class Pod(NamedTuple):
    """As a policy sees it."""

    labels: dict[str, str]
    ports: dict[str, int]  # by name


class Cluster:
    """What the policies of one rendering allow."""

    def __init__(self, values: dict[str, Any]) -> None:
        all_of_them = manifests(values)
        self.policies = of_kind(all_of_them, "NetworkPolicy")
        self.pods: dict[str, Pod] = {}
        for _, template in pods(all_of_them):
            labels = template["metadata"]["labels"]
            named = [port for container in containers(template) for port in container.get("ports", [])]
            self.pods[labels["gemline.dev/part"]] = Pod(labels, {port["name"]: port["containerPort"] for port in named})

    def reaches(self, source: str, target: str, port: int) -> bool:
        """Whether a pod of ours gets through to one of ours: it needs a word on both sides."""
        return self._allows("Egress", source, target, port) and self._allows("Ingress", target, source, port)

    def admits(self, target: str, port: int, namespace: str) -> bool:
        """Whether a pod of another namespace gets in."""
        return self._allows("Ingress", target, None, port, namespace)

    def _allows(self, direction: str, own: str, other: str | None, port: int, namespace: str = "") -> bool:
        side = "to" if direction == "Egress" else "from"
        policies = [
            policy["spec"]
            for policy in self.policies
            if direction in policy["spec"]["policyTypes"]
            and selects(policy["spec"]["podSelector"], self.pods[own].labels)
        ]
        assert policies, f"no policy of {direction} holds {own}: everything is allowed"
        listening = self.pods[own if direction == "Ingress" else other or own]
        return any(
            self._peer_matches(rule.get(side), other, namespace) and _port_matches(rule.get("ports"), port, listening)
            for policy in policies
            for rule in policy.get(direction.lower(), [])
        )

    def _peer_matches(self, peers: list[dict[str, Any]] | None, other: str | None, namespace: str) -> bool:
        if peers is None:
            return True
        for peer in peers:
            if "namespaceSelector" in peer:
                if not namespace:
                    continue
                if selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace}):
                    return True
            elif other is not None and selects(peer.get("podSelector", {}), self.pods[other].labels):
                return "ipBlock" not in peer
        return False


def _port_matches(ports: list[dict[str, Any]] | None, port: int, pod: Pod) -> bool:
    if ports is None:
        return True
    return any(it["protocol"] == "TCP" and pod.ports.get(it["port"], it["port"]) == port for it in ports)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster(PROFILES["h100-9b"])


def test_every_part_is_there(cluster: Cluster) -> None:
    assert set(cluster.pods) == set(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_what_is_not_allowed_is_denied_both_ways(cluster: Cluster, part: str) -> None:
    (deny,) = [policy["spec"] for policy in cluster.policies if policy["metadata"]["name"].endswith("-deny")]
    assert selects(deny["podSelector"], cluster.pods[part].labels)
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(deny)


GRPC, METRICS, REDIS, DASHBOARD, ANY = 9461, 9464, 6379, 8265, 12345
RAY = ("ray-head", "tokenization", "prefill", "decode")


def test_gateways_reach_workers_at_their_grpc_port_alone(cluster: Cluster) -> None:
    assert cluster.reaches("gateway", "tokenization", GRPC)
    assert cluster.reaches("gateway", "decode", GRPC)
    assert not cluster.reaches("gateway", "prefill", GRPC)
    for part in RAY:
        assert not cluster.reaches("gateway", part, ANY)
        assert not cluster.reaches("gateway", part, METRICS)
    assert not cluster.reaches("gateway", "ray-head", DASHBOARD)


def test_ray_and_workers_reach_each_other_at_any_port(cluster: Cluster) -> None:
    assert all(cluster.reaches(source, target, ANY) for source in RAY for target in RAY)


def test_workers_do_not_reach_gateways(cluster: Cluster) -> None:
    assert not any(cluster.reaches(part, "gateway", 8080) for part in RAY)


def test_redis_is_reached_by_ours_at_its_port_and_reaches_nobody(cluster: Cluster) -> None:
    users = [part for part in PARTS if part != "redis"]
    assert all(cluster.reaches(part, "redis", REDIS) for part in users)
    assert not any(cluster.reaches(part, "redis", ANY) for part in users)
    assert not any(cluster.reaches("redis", part, port) for part in users for port in (GRPC, 8080, ANY))
    assert not cluster.admits("redis", REDIS, "default")


def test_the_operator_reaches_the_head_and_nothing_else(cluster: Cluster) -> None:
    assert cluster.admits("ray-head", DASHBOARD, "kuberay-system")
    assert cluster.admits("ray-head", 8000, "kuberay-system")
    assert not cluster.admits("ray-head", REDIS, "kuberay-system")
    assert not cluster.admits("decode", GRPC, "kuberay-system")
    assert not cluster.admits("ray-head", DASHBOARD, "default")


def test_metrics_are_for_the_monitoring_namespace(cluster: Cluster) -> None:
    for part in ("tokenization", "prefill", "decode"):
        assert cluster.admits(part, METRICS, "monitoring")
        assert not cluster.admits(part, METRICS, "default")
        assert not cluster.admits(part, GRPC, "monitoring")


def test_everybody_reaches_the_public_ports_unless_some_are_named(cluster: Cluster) -> None:
    assert cluster.admits("gateway", 8080, "default")
    assert cluster.admits("gateway", 50051, "default")
    assert not cluster.admits("gateway", 8081, "default")
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "edge"}}}
    named = Cluster(changed("h100-9b", networkPolicy={"gatewayFrom": [peer]}))
    assert named.admits("gateway", 8080, "edge")
    assert named.admits("gateway", 8080, "monitoring")
    assert not named.admits("gateway", 8080, "default")
    assert named.reaches("test", "gateway", 50051)


def test_the_test_of_a_release_reaches_what_it_asks(cluster: Cluster) -> None:
    assert cluster.reaches("test", "gateway", 50051)
    assert not cluster.reaches("test", "decode", GRPC)


def test_the_rollout_reaches_what_it_asks_and_is_reached_by_nobody(cluster: Cluster) -> None:
    assert cluster.reaches("rollout", "decode", GRPC)
    assert not cluster.reaches("rollout", "gateway", 8080)
    assert not any(cluster.reaches(part, "rollout", ANY) for part in PARTS if part != "rollout")
    assert not cluster.admits("rollout", ANY, "default")


def test_only_pods_that_download_reach_the_internet() -> None:
    (hub,) = [it for it in Cluster(PROFILES["multi-model"]).policies if it["metadata"]["name"].endswith("-hub")]
    for _, template in pods(manifests(PROFILES["multi-model"])):
        labels = template["metadata"]["labels"]
        assert selects(hub["spec"]["podSelector"], labels) == (labels.get("gemline.dev/model") == "gemma-2-2b")
    names = [policy["metadata"]["name"] for policy in Cluster(PROFILES["h100-27b-fp8"]).policies]
    assert not any(name.endswith("-hub") for name in names)


def test_two_releases_do_not_reach_each_other() -> None:
    policies = of_kind(manifests(PROFILES["cpu"], "gemline-a"), "NetworkPolicy")
    other = [template["metadata"]["labels"] for _, template in pods(manifests(PROFILES["cpu"], "gemline-b"))]
    assert not any(selects(policy["spec"]["podSelector"], labels) for policy in policies for labels in other)
