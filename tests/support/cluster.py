"""A Kubernetes API server as the chart's tests use it, whichever it is: the stand-in, or a real one."""

import json
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
from helm_python import Chart, Config
from support.chart import CHART, Manifest, containers, manifests, pods
from support.kube_api import OPERATOR, FakeKube, fake_kube
from support.kube_kinds import BY_NAME, KINDS, Kind

Objects = dict[tuple[str, str], Manifest]  # by kind and name
# What an API server, or Helm, makes by itself.
_NOT_OURS = {("Service", "kubernetes"), ("ServiceAccount", "default"), ("ConfigMap", "kube-root-ca.crt")}
RELEASE = "gemline"


@dataclass
class Cluster:
    """One namespace of one server."""

    url: str
    token: str
    namespace: str
    storage: str  # where Helm keeps what it knows of a release: memory or secret
    fake: FakeKube | None = None

    def ask(self, method: str, path: str, body: Manifest | None = None, patch: str = "merge-patch+json") -> Any:
        """Raises AssertionError with what the server says."""
        kind = f"application/{patch}" if method == "PATCH" else "application/json"
        headers = {"authorization": f"Bearer {self.token}", "content-type": kind}
        content = None if body is None else json.dumps(body)
        answer = httpx.request(method, f"{self.url}{path}", content=content, headers=headers, verify=False)  # noqa: S501
        assert answer.status_code < 300, f"{method} {path}: {answer.text}"
        return answer.json()

    def path(self, kind: Kind, name: str = "") -> str:
        root = "/api/v1" if not kind.group else f"/apis/{kind.api_version}"
        where = f"/namespaces/{self.namespace}" if kind.namespaced else ""
        return f"{root}{where}/{kind.plural}{f'/{name}' if name else ''}"

    def make(self, manifest: Manifest) -> None:
        kind = BY_NAME[manifest["apiVersion"], manifest["kind"]]
        self.ask("POST", self.path(kind), manifest)

    def patch(self, kind: Kind, name: str, body: Manifest) -> None:
        self.ask("PATCH", self.path(kind, name), body)

    def objects(self) -> Objects:
        """All there is in the namespace, but for what Helm keeps for itself and what was there from the start."""
        found = {}
        for kind in KINDS:
            if kind.namespaced:
                for it in self.ask("GET", self.path(kind))["items"]:
                    if it.get("type") != "helm.sh/release.v1" and (kind.name, it["metadata"]["name"]) not in _NOT_OURS:
                        found[kind.name, it["metadata"]["name"]] = it
        return found

    def kubeconfig(self, token: str | None = None) -> Manifest:
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "c", "cluster": {"server": self.url} | self._tls()}],
            "users": [{"name": "u", "user": {"token": token or self.token}}],
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": self.namespace}}],
        }

    def _tls(self) -> Manifest:
        return {"insecure-skip-tls-verify": True} if self.url.startswith("https") else {}

    def account_token(self, account: str) -> str:
        """What a pod of that service account gets."""
        if self.fake is not None:
            return account
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{account}/token"
        spec = {"expirationSeconds": 600}
        made = self.ask("POST", path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
        return str(made["status"]["token"])

    @contextmanager
    def helm(self) -> Iterator["Helm"]:
        told = json.dumps(self.kubeconfig())
        with Config(kubeconfig_content=told, namespace=self.namespace, storage_driver=self.storage) as config:
            yield Helm(config, self.namespace)


@dataclass
class Helm:
    """Helm's own library, with our chart."""

    config: Config
    namespace: str

    def install(self, values: Manifest) -> Any:
        return self.config.install(CHART, RELEASE, values, timeout=60)

    def upgrade(self, values: Manifest) -> Any:
        return self.config.upgrade(CHART, RELEASE, values, timeout=60)

    def render(self, values: Manifest) -> dict[str, str]:
        """What an upgrade would apply, by what is in the cluster."""
        with Chart.load(CHART) as chart:
            return self.config.render(chart, values, name=RELEASE, namespace=self.namespace, is_upgrade=True)

    def rollback(self) -> None:
        self.config.rollback(RELEASE, timeout=60)

    def uninstall(self) -> None:
        self.config.uninstall(RELEASE, timeout=60)


def secrets_named(rendered: Iterable[Manifest]) -> dict[str, set[str]]:
    """The Secrets that pods ask for, with their keys; those that something in the cluster makes are not among them."""
    listed = list(rendered)
    made = {it["spec"]["secretName"] for it in listed if it["kind"] == "Certificate"}
    made |= {it["spec"]["template"]["spec"]["containers"][0]["args"][1] for it in listed if it["kind"] == "Job"}
    found: dict[str, set[str]] = {}
    for _, template in pods(listed):
        for container in containers(template):
            for variable in container.get("env", []):
                if given := variable.get("valueFrom", {}).get("secretKeyRef"):
                    found.setdefault(given["name"], set()).add(given["key"])
        for volume in template["spec"].get("volumes", []):
            if "secret" in volume:
                found.setdefault(volume["secret"]["secretName"], set()).update(("tls.crt", "tls.key", "ca.crt"))
        for named in template["spec"].get("imagePullSecrets", []):
            found.setdefault(named["name"], set()).add(".dockerconfigjson")
    return {name: keys for name, keys in found.items() if name not in made}


def secret(name: str, keys: Iterable[str]) -> Manifest:
    data = {key: "c2VjcmV0" for key in keys}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "Opaque", "data": data}


def give_secrets(cluster: Cluster, values: Manifest) -> None:
    """All that the values name."""
    for name, keys in secrets_named(manifests(values)).items():
        cluster.make(secret(name, keys))


@contextmanager
def stand_in() -> Iterator[Cluster]:
    with fake_kube() as fake:
        yield new_namespace(Cluster(fake.url, OPERATOR, "", "memory", fake))


def new_namespace(cluster: Cluster) -> Cluster:
    """The cluster, at a new namespace."""
    cluster = replace(cluster, namespace=f"t-{uuid.uuid4().hex[:8]}")
    cluster.ask(
        "POST",
        "/api/v1/namespaces",
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": cluster.namespace}},
    )
    return cluster


def holds(there: Any, wanted: Any) -> bool:
    """Whether all that was wanted is there; a server adds its defaults."""
    if isinstance(wanted, dict):
        return isinstance(there, dict) and all(
            holds(there.get(name), value) for name, value in wanted.items() if value not in (None, {}, [])
        )
    if isinstance(wanted, list):
        return (
            isinstance(there, list)
            and len(there) == len(wanted)
            and all(holds(one, other) for one, other in zip(there, wanted, strict=True))
        )
    return bool(there == wanted)
