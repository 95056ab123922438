"""A metric of the processes of one role, as Prometheus would scrape it."""

import httpx
from prometheus_client.parser import text_string_to_metric_families
from support.stack import Running


def metric(running: Running, role: str, name: str, **labels: str) -> float:
    """Sum of the samples of that name, with these labels, over the processes of the role; 0 when there is none."""
    total = 0.0
    for process in running.ready["processes"]:
        if process["role"] == role:
            text = httpx.get(f"http://{process['metrics']}/metrics").text
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name == name and labels.items() <= sample.labels.items():
                        total += sample.value
    return total
