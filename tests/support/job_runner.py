"""What a kubelet and the job controller would do: the container of each Job of ours is run here, as a process."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.cluster import Cluster
from support.commands import gemline
from support.kube_kinds import BY_RESOURCE

_JOBS = BY_RESOURCE["jobs.batch"]
_POLL_S = 0.1
_NOW = "2026-01-01T00:00:00Z"


def run_container(cluster: Cluster, template: dict[str, Any], home: Path) -> tuple[int, str]:
    """Exit code and what was written, of `gemline ARGS` with what its account may do."""
    spec = template["spec"]
    (container,) = spec["containers"]
    config = home / f"{spec['serviceAccountName']}.json"
    config.write_text(json.dumps(cluster.kubeconfig(cluster.account_token(spec["serviceAccountName"]))))
    done = gemline(*container["args"], home=home, KUBECONFIG=str(config))
    return done.returncode, done.stdout + done.stderr


@contextmanager
def running_jobs(cluster: Cluster, home: Path) -> Iterator[list[str]]:
    """Gives what the jobs wrote, as they come."""
    told: list[str] = []
    ended = threading.Event()

    def run() -> None:
        seen: set[str] = set()
        while not ended.wait(_POLL_S):
            for job in cluster.ask("GET", cluster.path(_JOBS))["items"]:
                if job["metadata"]["uid"] in seen:
                    continue
                seen.add(job["metadata"]["uid"])
                code, text = run_container(cluster, job["spec"]["template"], home)
                told.append(text)
                status = _succeeded() if code == 0 else _failed(text)
                cluster.ask("PATCH", f"{cluster.path(_JOBS, job['metadata']['name'])}/status", {"status": status})

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        ended.set()
        thread.join(60)


def _succeeded() -> dict[str, Any]:
    conditions = [_condition("SuccessCriteriaMet", "CompletionsReached"), _condition("Complete", "CompletionsReached")]
    return {"succeeded": 1, "startTime": _NOW, "completionTime": _NOW, "conditions": conditions}


def _failed(text: str) -> dict[str, Any]:
    conditions = [
        _condition("FailureTarget", "BackoffLimitExceeded"),
        _condition("Failed", "BackoffLimitExceeded", text),
    ]
    return {"failed": 1, "startTime": _NOW, "conditions": conditions}


def _condition(kind: str, reason: str, message: str = "") -> dict[str, str]:
    told = {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": _NOW, "lastProbeTime": _NOW}
    return told | {"message": message}
