"""The gateway scaled by KEDA: what KEDA takes, by fields that it has had since 2.10, and a metric of ours.

https://keda.sh/docs/latest/reference/scaledobject-spec, https://keda.sh/docs/latest/scalers/prometheus
"""

import re
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.chart import changed, manifests, of_kind

from gemline.gateway.metrics import GatewayMetrics
from gemline.telemetry import setup

VALUES = changed(
    "cpu",
    gateway__autoscaling={"enabled": True, "kind": "keda", "keda": {"prometheus": "http://prometheus.monitoring:9090"}},
    monitoring={"serviceMonitor": {"enabled": True}},
)
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
SPEC: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["scaleTargetRef", "triggers"],
    "properties": {
        "scaleTargetRef": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {
                name: {"type": "string"} for name in ("apiVersion", "kind", "name", "envSourceContainerName")
            },
        },
        **{name: {"type": "integer"} for name in ("pollingInterval", "minReplicaCount", "maxReplicaCount")},
        "advanced": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "horizontalPodAutoscalerConfig": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"behavior": {"type": "object"}, "name": {"type": "string"}},
                }
            },
        },
        "triggers": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["type", "metadata"],
                "properties": {"type": {"type": "string"}, "metricType": {"type": "string"}, "metadata": _TEXTS},
            },
        },
    },
}
METADATA = {
    "prometheus": {"serverAddress", "query", "threshold", "ignoreNullValues"},
    "cpu": {"value"},
}


@pytest.fixture(scope="module")
def scaled() -> dict[str, Any]:
    (found,) = of_kind(manifests(VALUES), "ScaledObject")
    return found


def test_keda_takes_it(scaled: dict[str, Any]) -> None:
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    jsonschema.validate(scaled["spec"], SPEC)
    for trigger in scaled["spec"]["triggers"]:
        assert set(trigger["metadata"]) == METADATA[trigger["type"]]


def test_what_it_says_of_the_autoscaler_is_kubernetes_own(scaled: dict[str, Any]) -> None:
    behavior = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}
    autoscaler = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "x"}}
    spec = {"scaleTargetRef": target, "maxReplicas": 2, "behavior": behavior}
    kubernetes_validate.validate(autoscaler | {"spec": spec}, "1.34.0", strict=True)


def test_one_autoscaler_says_how_many_and_it_is_of_the_gateway(scaled: dict[str, Any]) -> None:
    all_of_them = manifests(VALUES)
    assert of_kind(all_of_them, "HorizontalPodAutoscaler") == []
    (gateway,) = of_kind(all_of_them, "Deployment")
    assert "replicas" not in gateway["spec"]
    assert scaled["spec"]["scaleTargetRef"] == {"name": gateway["metadata"]["name"]}


def test_the_query_is_of_a_metric_that_gateways_export_by_labels_that_the_monitor_gives(scaled: dict[str, Any]) -> None:
    (trigger,) = [it for it in scaled["spec"]["triggers"] if it["type"] == "prometheus"]
    matched = re.fullmatch(r'sum\((\w+)\{namespace="(\w+)", service="([-\w]+)"\}\)', trigger["metadata"]["query"])
    assert matched is not None
    telemetry = setup("gateway")
    GatewayMetrics(telemetry).active.add(3)
    families = {it.name: it for it in text_string_to_metric_families(telemetry.render_metrics().decode())}
    telemetry.shutdown()
    assert families[matched[1]].type == "gauge"
    assert sum(sample.value for sample in families[matched[1]].samples) == 3
    # The Prometheus operator labels what it finds through a Service by the Service's name and namespace.
    all_of_them = manifests(VALUES)
    services = {it["metadata"]["name"] for it in of_kind(all_of_them, "Service")}
    assert matched[2] == "serving"
    assert matched[3] in services
