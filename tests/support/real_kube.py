"""A real kube-apiserver with its etcd, as the binaries of envtest give them; KUBEBUILDER_ASSETS is their folder.

No controller runs, as in the stand-in. https://book.kubebuilder.io/reference/envtest
"""

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from support.chart import ROOT
from support.cluster import Cluster
from support.kube_api import OPERATOR
from support.kube_kinds import Kind, custom_kinds

ASSETS = Path(os.environ["KUBEBUILDER_ASSETS"]) if os.environ.get("KUBEBUILDER_ASSETS") else None
KUBERAY = ROOT.parent / "shared" / "kuberay"
_START_S = 120.0


@contextmanager
def real_kube(assets: Path) -> Iterator[Cluster]:
    """Skips where KubeRay's CRDs are not beside this checkout."""
    for name in ("etcd", "kube-apiserver"):
        if not (assets / name).is_file():
            pytest.fail(f"KUBEBUILDER_ASSETS: {assets} has no {name}")
    if not KUBERAY.exists():
        pytest.skip("KubeRay's CRDs are not beside this checkout")
    with ExitStack() as running:
        home = Path(running.enter_context(tempfile.TemporaryDirectory()))
        etcd, peer, port = _free_port(), _free_port(), _free_port()
        store = f"http://127.0.0.1:{etcd}"
        running.enter_context(
            _process(
                assets / "etcd",
                f"--data-dir={home / 'etcd'}",
                f"--listen-client-urls={store}",
                f"--advertise-client-urls={store}",
                f"--listen-peer-urls=http://127.0.0.1:{peer}",
                "--unsafe-no-fsync",
                log=home / "etcd.log",
            )
        )
        key = rsa.generate_private_key(65537, 2048)
        form = serialization.PrivateFormat.TraditionalOpenSSL
        pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        (home / "accounts.key").write_bytes(pem)
        (home / "tokens.csv").write_text(f'{OPERATOR},operator,operator,"system:masters"\n')
        running.enter_context(
            _process(
                assets / "kube-apiserver",
                f"--etcd-servers={store}",
                f"--cert-dir={home / 'certificates'}",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                f"--secure-port={port}",
                f"--token-auth-file={home / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.0.0.0/24",
                "--disable-admission-plugins=ServiceAccount",
                f"--service-account-issuer=https://127.0.0.1:{port}/",
                f"--service-account-key-file={home / 'accounts.key'}",
                f"--service-account-signing-key-file={home / 'accounts.key'}",
                log=home / "kube-apiserver.log",
            )
        )
        cluster = Cluster(f"https://127.0.0.1:{port}", OPERATOR, "default", "secret")
        _until(lambda: _is_ready(cluster), "kube-apiserver", home / "kube-apiserver.log")
        for kind in custom_kinds():
            cluster.ask("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", _definition(kind))
        for kind in custom_kinds():
            _until(lambda kind=kind: _is_served(cluster, kind), kind.resource, home / "kube-apiserver.log")
        yield cluster


def _definition(kind: Kind) -> dict[str, Any]:
    """KubeRay's own; of the others what takes any fields."""
    own = KUBERAY / f"{kind.plural}.crd.json"
    if own.exists():
        read: dict[str, Any] = json.loads(own.read_text())
        return read
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": kind.version, "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}
    metadata: dict[str, Any] = {"name": kind.resource}
    if kind.group.endswith(".k8s.io"):
        metadata["annotations"] = {"api-approved.kubernetes.io": "unapproved, for a test"}
    names = {"kind": kind.name, "plural": kind.plural, "singular": kind.name.lower(), "listKind": f"{kind.name}List"}
    spec = {"group": kind.group, "scope": "Namespaced", "names": names, "versions": [version]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": spec,
    }


def _is_ready(cluster: Cluster) -> bool:
    headers = {"authorization": f"Bearer {cluster.token}"}
    try:
        return httpx.get(f"{cluster.url}/readyz", headers=headers, verify=False).status_code == 200  # noqa: S501
    except httpx.HTTPError:
        return False


def _is_served(cluster: Cluster, kind: Kind) -> bool:
    try:
        cluster.ask("GET", cluster.path(kind))
    except AssertionError:
        return False
    return True


def _until(holds: Any, what: str, log: Path) -> None:
    end = time.monotonic() + _START_S
    while not holds():
        assert time.monotonic() < end, f"{what} is not ready after {_START_S:g} s: {log.read_text()[-2000:]}"
        time.sleep(0.1)


@contextmanager
def _process(*command: str | Path, log: Path) -> Iterator[None]:
    with log.open("wb") as told:
        running = subprocess.Popen([str(part) for part in command], stdout=told, stderr=told)
        try:
            yield
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
