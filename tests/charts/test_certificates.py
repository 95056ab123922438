"""A CA of the release's own, without cert-manager: what its jobs may do, and what comes of an install."""

import base64
from pathlib import Path
from typing import Any

import pytest
from charts.test_helm import ours
from helm_python import HelmError
from support.chart import PROFILES, changed, containers, manifests, of_kind, pods, selects
from support.cluster import Cluster, give_secrets, secret
from support.job_runner import run_container
from support.own_command import parse

from gemline.rollout.secrets import RBAC_VERBS
from gemline.rpc.internal_tls import InternalTls
from gemline.rpc.tls_files import TlsFiles

VALUES = changed("cpu", internalTls={"mode": "job"})
SECRETS = ["gemline-internal", "gemline-internal-ca"]
FIRST, DAILY = "gemline-tls-first", "gemline-tls"


def rules(name: str) -> list[dict[str, Any]]:
    (role,) = [it for it in of_kind(manifests(VALUES), "Role") if it["metadata"]["name"] == name]
    found: list[dict[str, Any]] = role["rules"]
    return found


def test_the_first_job_may_do_what_the_command_asks_for_and_the_daily_one_makes_nothing() -> None:
    named = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": SECRETS, "verbs": ["get", "patch"]}
    assert rules(DAILY) == [named]
    assert rules(FIRST) == [named, {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}]
    assert {verb for rule in rules(FIRST) for verb in rule["verbs"]} == RBAC_VERBS


def test_what_may_make_secrets_is_a_hook_and_goes_with_it() -> None:
    hooks = [it for it in manifests(VALUES) if it["metadata"]["name"] == FIRST]
    assert {it["kind"] for it in hooks} == {"ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "Job"}
    for it in hooks:
        told = it["metadata"]["annotations"]
        assert told["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert told["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
        assert (told["helm.sh/hook-weight"] == "-1") is (it["kind"] == "Job")  # the account is there before


def test_the_jobs_are_started_by_a_command_of_ours_and_reach_the_api_server_alone() -> None:
    all_of_them = manifests(VALUES)
    found = [(name, it) for name, it in pods(all_of_them) if name.startswith(("Job", "CronJob"))]
    assert len(found) == 2
    for name, template in found:
        (container,) = containers(template)
        assert parse(container["args"])["name"] == "gemline-internal"
        assert template["spec"]["automountServiceAccountToken"] is True
        labels = template["metadata"]["labels"]
        policies = [it for it in of_kind(all_of_them, "NetworkPolicy") if selects(it["spec"]["podSelector"], labels)]
        allowed = {port["port"] for it in policies for rule in it["spec"].get("egress", []) for port in rule["ports"]}
        assert allowed == {53, 443, 6443}, name
        assert not [rule for it in policies for rule in it["spec"].get("ingress", [])], name


def test_names_are_short_enough_for_the_longest_release() -> None:
    all_of_them = manifests(VALUES, "g" * 39)
    (daily,), (first,) = of_kind(all_of_them, "CronJob"), of_kind(all_of_them, "Job")
    assert len(daily["metadata"]["name"]) <= 52  # eleven more are for the name of a job
    assert len(first["metadata"]["name"]) <= 63


def test_the_processes_mount_what_the_job_makes() -> None:
    for name, template in pods(manifests(VALUES)):
        for volume in template["spec"].get("volumes", []):
            if volume["name"] == "tls":
                assert volume["secret"]["secretName"] == SECRETS[0], name


def test_a_schedule_that_is_none_is_refused() -> None:
    with pytest.raises(HelmError, match="internalTls/job/schedule"):
        manifests(changed("cpu", internalTls={"mode": "job", "job": {"schedule": "nightly"}}))


def test_an_install_makes_certificates_first_and_an_upgrade_leaves_them(
    cluster: Cluster, jobs: list[str], tmp_path: Path
) -> None:
    give_secrets(cluster, VALUES)
    with cluster.helm() as helm:
        helm.install(VALUES)
        assert jobs == ["gemline-internal-ca: made\ngemline-internal: made\n"]
        there = cluster.objects()
        found = {key: base64.b64decode(value) for key, value in there["Secret", SECRETS[0]]["data"].items()}
        for key, value in found.items():
            (tmp_path / key).write_bytes(value)
        InternalTls(TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt"))  # or it raises
        assert not [key for key in there if key[1] == FIRST]
        helm.upgrade(VALUES | {"images": {"gateway": {"repository": "gemline-gateway", "tag": "0.2.0"}}})
        assert jobs[1:] == ["gemline-internal: is good\n"]
        assert cluster.objects()["Secret", SECRETS[0]]["data"] == there["Secret", SECRETS[0]]["data"]
        helm.uninstall()
    assert {name for kind, name in cluster.objects() if kind == "Secret"} > set(SECRETS)  # they are nobody's to remove


def test_the_daily_job_may_do_its_work_and_no_more(cluster: Cluster, jobs: list[str], tmp_path: Path) -> None:
    give_secrets(cluster, VALUES)
    with cluster.helm() as helm:
        helm.install(VALUES)
    template = cluster.objects()["CronJob", DAILY]["spec"]["jobTemplate"]["spec"]["template"]
    assert run_container(cluster, template, tmp_path) == (0, "gemline-internal: is good\n")
    (container,) = template["spec"]["containers"]
    container["args"][1] = "gemline-redis"
    code, told = run_container(cluster, template, tmp_path)
    assert (code, told.startswith("gemline: may not get secrets gemline-redis in namespace")) == (1, True)


def test_a_job_that_fails_ends_the_install_before_anything_is_applied(cluster: Cluster, jobs: list[str]) -> None:
    give_secrets(cluster, VALUES)
    cluster.make(secret(SECRETS[0], ["tls.crt", "tls.key"]))  # of a CA that nobody has
    with cluster.helm() as helm, pytest.raises(HelmError, match="pre-install"):
        helm.install(VALUES)
    assert "gemline-internal is there, and that of its CA, gemline-internal-ca, is not" in jobs[0]
    assert {name for _, name in ours(cluster)} == {FIRST}  # for who looks what was wrong


def test_profiles_without_the_mode_have_none_of_it() -> None:
    assert not [it for it in manifests(PROFILES["cpu"]) if it["kind"] in ("Job", "CronJob", "Role")]
