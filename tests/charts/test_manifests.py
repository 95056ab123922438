"""Every manifest of every profile: what Kubernetes takes, and what we promise of each pod."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
from support.chart import GOLDEN, PROFILES, changed, containers, maker, manifests, of_kind, pods, selects
from support.own_command import parse

NOT_KUBERNETES = (
    "ray.io/",
    "cert-manager.io/",
    "monitoring.coreos.com/",
    "gateway.networking.k8s.io/",
    "keda.sh/",
)
_IMAGE = re.compile(r"(?P<name>[^:@]+(:\d+/[^:@]+)?):(?P<tag>[^:@]+)(@sha256:[0-9a-f]{64})?")


@pytest.fixture(params=PROFILES)
def profile(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return manifests(PROFILES[request.param])


def everything() -> list[dict[str, Any]]:
    """With all that is off by default."""
    return manifests(
        changed(
            "multi-model",
            monitoring={"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}},
            redis={"internal": True, "existingSecret": "gemline-redis"},
            imagePullSecrets=["registry"],
        )
    )


@pytest.mark.parametrize("version", ["1.30.0", "1.34.0"])
def test_kubernetes_takes_every_manifest_and_knows_each_field(version: str, profile: list[dict[str, Any]]) -> None:
    own = [manifest for manifest in profile if not manifest["apiVersion"].startswith(NOT_KUBERNETES)]
    assert len(own) > 10
    for manifest in own:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", ["1.30.0", "1.34.0"])
def test_kubernetes_takes_rays_pods(version: str, profile: list[dict[str, Any]]) -> None:
    templates = [template for name, template in pods(profile) if name.startswith("RayService")]
    assert len(templates) > 2
    for template in templates:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"} | template["metadata"]}
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, version, strict=True)


def test_a_manifest_with_an_unknown_field_is_refused() -> None:
    (deployment,) = of_kind(manifests(PROFILES["cpu"]), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessprobe"):
        kubernetes_validate.validate(deployment, "1.34.0", strict=True)


@pytest.mark.parametrize("name", PROFILES)
def test_what_is_committed_is_what_the_chart_gives(name: str) -> None:
    assert (GOLDEN / f"{name}.yaml").read_text() == maker.render(PROFILES[name])


def test_no_golden_file_outlives_its_profile() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(PROFILES)


def test_no_two_manifests_have_one_name(profile: list[dict[str, Any]]) -> None:
    names = [(manifest["apiVersion"], manifest["kind"], manifest["metadata"]["name"]) for manifest in profile]
    assert len(names) == len(set(names))


def test_every_image_has_a_version() -> None:
    found = [container["image"] for _, template in pods(everything()) for container in containers(template)]
    assert len(found) > 8
    for image in found:
        match = _IMAGE.fullmatch(image)
        assert match, image
        assert match["tag"] != "latest"
        assert re.search(r"\d+\.\d+", match["tag"])


def test_an_image_that_is_not_ours_is_named_by_its_digest() -> None:
    images = {container["image"] for _, template in pods(everything()) for container in containers(template)}
    foreign = {image for image in images if not image.startswith("gemline-")}
    assert foreign
    assert all("@sha256:" in image for image in foreign)


def test_every_port_says_its_protocol() -> None:
    found = list(_ports(everything()))
    assert len(found) > 15
    assert [port for port in found if "protocol" not in port] == []


def _ports(place: Any) -> Iterator[dict[str, Any]]:
    if isinstance(place, list):
        for part in place:
            yield from _ports(part)
    elif isinstance(place, dict):
        for key, value in place.items():
            if key == "ports":
                yield from value
            else:
                yield from _ports(value)


def test_every_container_is_hardened() -> None:
    for name, template in [*pods(everything()), *pods(manifests(PROFILES["h100-27b-tp2"]))]:
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), name
        for container in containers(template):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, (name, container["name"])
            assert context["allowPrivilegeEscalation"] is False, (name, container["name"])
            assert context["capabilities"] == {"drop": ["ALL"]}, (name, container["name"])
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}, (name, container["name"])


def test_no_pod_has_a_token_for_the_api_server_and_no_role_is_made() -> None:
    manifests_ = everything()
    for name, template in pods(manifests_):
        assert template["spec"]["automountServiceAccountToken"] is False, name
        assert template["spec"]["serviceAccountName"] == "gemline", name
    (account,) = of_kind(manifests_, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert [manifest["kind"] for manifest in manifests_ if "rbac" in manifest["apiVersion"]] == []


def test_every_container_has_bounds_on_its_memory() -> None:
    for name, template in [*pods(everything()), *pods(manifests(PROFILES["h100-27b-tp2"]))]:
        for container in containers(template):
            resources = container["resources"]
            assert resources["limits"]["memory"], (name, container["name"])
            assert resources["requests"]["memory"], (name, container["name"])


def test_no_secret_is_made_and_every_password_comes_of_one() -> None:
    manifests_ = everything()
    assert of_kind(manifests_, "Secret") == []
    for name, template in pods(manifests_):
        for container in containers(template):
            for variable in container.get("env", []):
                if re.search(r"PASSWORD|KEY|SECRET|TOKEN", variable["name"]):
                    assert set(variable["valueFrom"]) == {"secretKeyRef"}, (name, variable["name"])


def test_a_gateway_has_longer_to_go_than_its_longest_stream() -> None:
    (gateway,) = of_kind(manifests(changed("cpu", gateway__longestStreamSeconds=900)), "Deployment")
    spec = gateway["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    slept_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert "--drain-timeout-s=900" in container["args"]
    assert spec["terminationGracePeriodSeconds"] > 900 + slept_s


def test_the_autoscaler_and_the_deployment_do_not_both_say_how_many() -> None:
    for enabled in (True, False):
        manifests_ = manifests(changed("cpu", gateway__autoscaling__enabled=enabled))
        (gateway,) = of_kind(manifests_, "Deployment")
        assert ("replicas" in gateway["spec"]) is not enabled
        assert bool(of_kind(manifests_, "HorizontalPodAutoscaler")) is enabled


def test_services_budgets_and_monitors_find_their_pods() -> None:
    manifests_ = everything()
    labels = [template["metadata"]["labels"] for _, template in pods(manifests_)]
    for service in of_kind(manifests_, "Service"):
        assert any(selects({"matchLabels": service["spec"]["selector"]}, own) for own in labels)
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        for manifest in of_kind(manifests_, kind):
            assert any(selects(manifest["spec"]["selector"], own) for own in labels), kind
    (monitor,) = of_kind(manifests_, "ServiceMonitor")
    (service,) = [it for it in of_kind(manifests_, "Service") if it["metadata"]["name"] == "gemline-gateway"]
    assert selects(monitor["spec"]["selector"], service["metadata"]["labels"])
    assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    (pod_monitor,) = of_kind(manifests_, "PodMonitor")
    watched = [own for own in labels if selects(pod_monitor["spec"]["selector"], own)]
    assert {own["gemline.dev/part"] for own in watched} == {"tokenization", "prefill", "decode"}


def test_routes_lead_to_ports_of_the_service() -> None:
    manifests_ = everything()
    (service,) = [it for it in of_kind(manifests_, "Service") if it["metadata"]["name"] == "gemline-gateway"]
    ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}
    for kind, name in (("HTTPRoute", "http"), ("GRPCRoute", "grpc")):
        (route,) = of_kind(manifests_, kind)
        (backend,) = route["spec"]["rules"][0]["backendRefs"]
        assert backend == {"name": "gemline-gateway", "port": ports[name]}


def test_routes_speak_tls_to_ports_that_do() -> None:
    policies = of_kind(everything(), "BackendTLSPolicy")
    (policy,) = policies
    (target,) = policy["spec"]["targetRefs"]
    assert target == {"group": "", "kind": "Service", "name": "gemline-gateway"}
    trusted = {"hostname": "llm.example.com", "wellKnownCACertificates": "System"}
    assert policy["spec"] == {"targetRefs": [target], "validation": trusted}
    own = manifests(changed("multi-model", routes__backendTls__caConfigMap="own-ca"))
    (policy,) = of_kind(own, "BackendTLSPolicy")
    assert policy["spec"]["validation"]["caCertificateRefs"] == [{"group": "", "kind": "ConfigMap", "name": "own-ca"}]
    in_clear = manifests(changed("multi-model", gateway__tls__existingSecret=""))
    assert of_kind(in_clear, "HTTPRoute")
    assert not of_kind(in_clear, "BackendTLSPolicy")


def test_workers_read_their_model_from_a_mount_they_cannot_write_and_reach_no_hub() -> None:
    for name, template in pods(manifests(PROFILES["multi-model"])):
        if not name.startswith("RayService") or name.endswith("head"):
            continue
        (worker,) = template["spec"]["containers"]
        (mount,) = [it for it in worker["volumeMounts"] if it["name"] == "model"]
        assert mount["readOnly"] is True
        assert {"name": "HF_HUB_OFFLINE", "value": "1"} in worker["env"]
        assert [variable for variable in worker["env"] if variable["name"] == "HF_TOKEN"] == []


def test_a_token_of_the_hub_is_seen_by_the_fetching_container_alone() -> None:
    seen = {
        container["name"]
        for _, template in pods(manifests(PROFILES["h100-9b"]))
        for container in containers(template)
        if any(variable["name"] == "HF_TOKEN" for variable in container.get("env", []))
    }
    assert seen == {"model"}


def test_the_internal_certificate_is_the_one_that_processes_ask_for() -> None:
    from gemline.rpc.internal_tls import NAME

    manifests_ = manifests(PROFILES["h100-9b"])
    (leaf,) = [it for it in of_kind(manifests_, "Certificate") if not it["spec"].get("isCA")]
    assert leaf["spec"]["dnsNames"] == [NAME]
    assert leaf["spec"]["usages"] == ["server auth", "client auth"]
    for name, template in pods(manifests_):
        mounted = [it["secret"]["secretName"] for it in template["spec"]["volumes"] if it["name"] == "tls"]
        is_ours = not name.startswith(("StatefulSet", "Pod")) and not name.endswith("head")
        assert mounted == ([leaf["spec"]["secretName"]] if is_ours else []), name


def test_the_gateways_probes_are_routes_that_are_open_without_a_key() -> None:
    from gemline.gateway.http.keys import OPEN_PATHS

    (gateway,) = of_kind(manifests(PROFILES["cpu"]), "Deployment")
    (container,) = gateway["spec"]["template"]["spec"]["containers"]
    paths = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"/healthz", "/readyz"}
    assert paths <= set(OPEN_PATHS)


@pytest.fixture
def redis_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """As every pod of ours has it."""
    monkeypatch.setenv("GEMLINE_REDIS_URL", "redis://redis:6379/0")


def test_the_gateway_and_the_fetching_containers_are_started_by_commands_of_ours(redis_url: None) -> None:
    for manifests_ in (everything(), manifests(PROFILES["cpu"])):
        for _, template in pods(manifests_):
            for container in containers(template):
                if container["name"] == "gateway":
                    params = parse(container["args"])
                    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
                    assert ports == {"http": params["http_port"], "grpc": params["grpc_port"]}
                if container["name"] == "model":
                    assert container["command"] == ["gemline", "fetch"]
                    params = parse(["fetch", *container["args"]])
                    (mount,) = [it for it in container["volumeMounts"] if it["name"] == "model"]
                    assert str(params["to"] or params["source"]).startswith(mount["mountPath"])


@pytest.mark.parametrize("name", ["cpu", "multi-model"])
def test_the_test_of_a_release_asks_in_words_that_our_command_line_knows(name: str, redis_url: None) -> None:
    (pod,) = of_kind(manifests(PROFILES[name]), "Pod")
    shell, flags, script = pod["spec"]["containers"][0]["command"]
    assert subprocess.run([shell, "-n", "-c", script]).returncode == 0
    assert flags == "-euc"
    commands = re.findall(r"gemline (.+?)[|)]", script.replace("\\\n", " "))
    assert [command.split()[0] for command in commands] == ["key", "generate"]
    for command in commands:
        params = parse(shlex.split(command))
    assert params["model"] == PROFILES[name]["models"][0]["servedName"]
    assert params["address"] == "gemline-gateway:50051"
    assert bool(params["root_certificates"]) is (name == "multi-model")
