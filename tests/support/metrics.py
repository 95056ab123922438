"""A metric of the processes of one role, as Prometheus would scrape it."""

import httpx
from prometheus_client.parser import text_string_to_metric_families
from support.stack import Running


def metric(running: Running, role: str, name: str, **labels: str) -> float:
    """Sum of the samples of that name, with these labels, over the processes of the role; 0 when there is none."""
    processes = [process for process in running.ready["processes"] if process["role"] == role]
    return sum(metric_at(process["metrics"], name, **labels) for process in processes)


def metric_at(address: str, name: str, **labels: str) -> float:
    """The same of one process, by its metrics address."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(httpx.get(f"http://{address}/metrics").text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
