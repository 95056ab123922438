"""What values.schema.json and the templates' own checks refuse, and in which words."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from helm_python import HelmError, HelmRenderError, HelmValuesError, lint
from support.chart import CHART, PROFILES, changed, maker, manifests


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_passes_lint_without_a_warning(profile: str) -> None:
    report = lint(CHART, PROFILES[profile], strict=True, namespace="serving", kube_version="v1.34.0")
    assert report["total_charts_linted"] == 1
    assert report["errors"] == []
    assert [it for it in report["messages"] if it["severity"] > 1] == []


REFUSED_BY_SCHEMA: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": ({"gateway__replica": 2}, "replica"),
    "an unknown field of a model": ({"models__0__quantisation": "int8"}, "quantisation"),
    "a word for a number": ({"gateway__longestStreamSeconds": "long"}, "longestStreamSeconds"),
    "a tag that moves": ({"images__worker__tag": "latest"}, "images/worker/tag"),
    "a digest that is none": ({"images__worker__digest": "sha256:12"}, "images/worker/digest"),
    "a branch instead of a commit": ({"models__0__source": "hf://google/gemma-2-2b-it@main"}, "models/0/source"),
    "a model without a source": ({"models__0__source": ...}, "source"),
    "ranks spread over nodes": ({"models__0__tensorParallelPlacement": "SPREAD"}, "models/0/tensorParallelPlacement"),
    "a precision that is none": ({"models__0__quantization": "fp4"}, "models/0/quantization"),
    "a GPU that does not say what it has": ({"gpus__b200": {"nodeSelector": {}, "tolerations": []}}, "memoryGiB"),
    "no replica": ({"models__0__decode__replicas": 0}, "models/0/decode/replicas"),
    "GPUs beside those that follow": (
        {"models__0__decode__resources__limits": {"nvidia.com/gpu": "4"}},
        "nvidia.com/gpu",
    ),
    "a name that is no label": ({"models__0__name": "Gemma_2"}, "models/0/name"),
    "a manifest that is no hash": ({"models__0__manifestSha256": "abc"}, "models/0/manifestSha256"),
    "a claim with a size": ({"models__0__source": "pvc://models"}, "models/0"),
    "a route without a parent": ({"routes__http": {"enabled": True}}, "routes/http"),
    "a unit that Kubernetes has not": ({"redis__storage__size": "8ki"}, "redis/storage/size"),
    "a password in the values": ({"redis__password": "hunter2"}, "password"),
}


@pytest.mark.parametrize("case", REFUSED_BY_SCHEMA)
def test_the_schema_refuses(case: str) -> None:
    changes, named = REFUSED_BY_SCHEMA[case]
    with pytest.raises(HelmValuesError) as refused:
        maker.render(changed("cpu", **changes))
    assert named in str(refused.value)


REFUSED_BY_CHECK: dict[str, tuple[dict[str, Any], str]] = {
    "no Redis secret": ({"redis__existingSecret": ""}, "redis.existingSecret: name a Secret whose key redis-password"),
    "no Redis at all": ({"redis__internal": False}, "redis.external.host: is empty"),
    "no TLS secret": ({"internalTls__mode": "existingSecret"}, "internalTls.existingSecret: is empty"),
    "no model": ({"models": []}, "models: is empty"),
    "fewer gateways at most than at least": (
        {"gateway__autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 2}},
        r"gateway\.autoscaling\.maxReplicas: is 2, below minReplicas, 3",
    ),
    "routes to ports with TLS that nobody names": (
        {
            "gateway__tls": {"existingSecret": "public"},
            "routes": {"http": {"enabled": True, "parentRefs": [{"name": "edge"}]}},
        },
        r"routes\.backendTls\.hostname: is empty",
    ),
    "KEDA without a Prometheus": (
        {"gateway__autoscaling": {"enabled": True, "kind": "keda"}},
        r"gateway\.autoscaling\.keda\.prometheus: is empty",
    ),
    "KEDA and nobody who collects": (
        {"gateway__autoscaling": {"enabled": True, "kind": "keda", "keda": {"prometheus": "http://prometheus:9090"}}},
        r"gateway\.autoscaling\.kind: is keda, and monitoring\.serviceMonitor\.enabled is false",
    ),
    "split without prefill": ({"models__0__prefill": ...}, "prefill: is not there, and topology is split"),
    "colocated with prefill": ({"models__0__topology": "colocated"}, "prefill: is there, but with topology colocated"),
    "a range that ends before it begins": (
        {"models__0__decode__replicas": 3, "models__0__decode__maxReplicas": 2},
        r"maxReplicas: is 2, below replicas, 3",
    ),
    "ranks in several pods that would talk in clear beside TLS": (
        {"models__0__tensorParallel": 2, "models__0__tensorParallelPlacement": "PACK", "internalTls__mode": "job"},
        r"models\[0\] \(demo\): tensorParallelPlacement: is PACK, and internalTls.mode is job: ranks .* in clear",
    ),
    "a GPU and no size": ({"models__0__gpu": "h100"}, "size: is not there"),
    "a GPU that no kernel runs on": (
        {"models__0__gpu": "l4", "models__0__size": "2b"},
        r"models\[0\] \(demo\): gpu: l4 is not among gpus: h100, h200",
    ),
}


@pytest.mark.parametrize("case", REFUSED_BY_CHECK)
def test_the_templates_refuse_and_say_why(case: str) -> None:
    changes, words = REFUSED_BY_CHECK[case]
    with pytest.raises(HelmRenderError, match=words):
        maker.render(changed("cpu", **changes))


SCHEMA = json.loads((CHART / "values.schema.json").read_text())
FREE = ("resources", "strings")  # what stands in them is Kubernetes' own


def known(schema: dict[str, Any], values: Any, path: str = "") -> Iterator[tuple[str, set[str], set[str]]]:
    """(path, defaults, required) of each object that has a default and whose fields the schema names."""
    name = schema.get("$ref", "").rpartition("/")[2]
    schema = SCHEMA["$defs"][name] if name else schema
    if isinstance(values, dict) and "properties" in schema and name not in FREE:
        yield path, set(values), set(schema.get("required", []))
        for key, value in values.items():
            yield from known(schema["properties"][key], value, f"{path}/{key}")


def test_every_value_with_a_default_is_one_that_the_schema_misses_where_it_is_not() -> None:
    """As with `--reuse-values`, which takes an older chart's defaults: templates count on ours."""
    found = list(known(SCHEMA, yaml.safe_load((CHART / "values.yaml").read_text())))
    assert len(found) > 25
    assert [(path, defaults ^ required) for path, defaults, required in found if defaults != required] == []


def test_the_chart_alone_says_what_it_lacks() -> None:
    with pytest.raises(HelmRenderError, match=r"redis\.existingSecret.*kubectl create secret"):
        maker.render({})


def test_two_models_may_not_have_one_name() -> None:
    model = PROFILES["cpu"]["models"][0]
    with pytest.raises(HelmRenderError, match=r'models\[1\] \(demo\): name "demo" stands twice'):
        maker.render(changed("cpu", models=[model, model]))
    with pytest.raises(HelmRenderError, match='servedName "gemline-demo" stands twice'):
        maker.render(changed("cpu", models=[model, model | {"name": "other"}]))


@pytest.mark.parametrize(("release", "words"), [("g" * 41, "49 characters"), ("1st", "must begin with a letter")])
def test_a_release_whose_name_no_ray_service_may_have_is_refused(release: str, words: str) -> None:
    with pytest.raises(HelmError, match=words):
        maker.render(PROFILES["cpu"], release)


def test_a_long_release_name_still_fits() -> None:
    assert manifests(PROFILES["cpu"], "g" * 39)
