"""Where `gemline rollout` finds its cluster and its namespace: in a kubeconfig, or in what a pod is given."""

import json
from pathlib import Path

import pytest
from kubernetes.config import incluster_config, kube_config
from support.certificates import Authority

from gemline.errors import ConfigurationError
from gemline.rollout import kube
from gemline.rollout.kube import Kube


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that a kubelet mounts for a service account; it stands elsewhere here."""
    (tmp_path / "token").write_text("abc")
    (tmp_path / "namespace").write_text("serving\n")
    certificate = Authority(tmp_path, "ca").ca
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificate))
    monkeypatch.setattr(kube, "_OWN_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    monkeypatch.setattr(
        kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config")
    )  # read when it is imported
    return tmp_path


def test_a_pod_looks_in_its_own_namespace_unless_told_otherwise(pod: Path) -> None:
    assert Kube.connect(None).namespace == "serving"
    assert Kube.connect("elsewhere").namespace == "elsewhere"
    assert Kube.connect(None).api.configuration.host == "https://127.0.0.1:6443"


def test_a_kubeconfig_comes_first(pod: Path) -> None:
    contexts = [
        {"name": name, "context": {"cluster": "c", "user": "u", "namespace": namespace}}
        for name, namespace in (("here", "team"), ("there", "another"))
    ]
    told = {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": contexts,
    }
    (pod / "config").write_text(json.dumps(told))
    assert Kube.connect(None).namespace == "team"
    assert Kube.connect(None, "there").namespace == "another"
    assert Kube.connect("elsewhere", "there").namespace == "elsewhere"


def test_a_machine_that_knows_no_cluster_is_told_so(pod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(ConfigurationError, match=r"no cluster is known: .*KUBECONFIG"):
        Kube.connect(None)
