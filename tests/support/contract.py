"""Schemathesis over the documents of a running platform: many requests, none a fault of ours, no answer unlike them."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from support.stack import Running, start_stack

from gemline.cluster.limits import MAX_LIMIT

ADMIN_KEY = "ga_sixteen_and_more"
TENANT, PROJECT = "acme", "web"
# A document cannot say which fields go together: what each of them allows may still be refused.
_EXCLUDED = "positive_data_acceptance"


class Target(NamedTuple):
    """One of the APIs, and what there is that a request can name."""

    document_url: str
    key: str
    there: dict[str, str]


class Outcome(NamedTuple):
    """Of one run."""

    statuses: Counter[int]  # how many answers of each
    failures: list[str]  # a line for each check that failed
    printed: str

    @property
    def num_faults(self) -> int:
        """Answers of 5xx, and none at all."""
        return sum(number for status, number in self.statuses.items() if status >= 500)


def start(directory: Path) -> Running:
    """A platform with the admin API on."""
    size = ("--runner", "process", "--topology", "colocated", "--admin-port", "0", "--first-prompt", "")
    return start_stack(directory, *size, environment={"GEMLINE_ADMIN_KEY": ADMIN_KEY})


def targets(running: Running) -> dict[str, Target]:
    """Both APIs by name; makes a tenant with limits, a project, a key, a prefix and a session."""
    base_url = f"{running.ready['admin']}/admin/v1"
    with httpx.Client(base_url=base_url, headers={"authorization": f"Bearer {ADMIN_KEY}"}) as admin:
        plenty = {"requests_per_min": MAX_LIMIT, "tokens_per_min": MAX_LIMIT}  # answers then tell how limits stand
        _made(admin.post("/tenants", json={"id": TENANT, "limits": plenty}))
        _made(admin.post(f"/tenants/{TENANT}/projects", json={"id": PROJECT}))
        # The public API's tenant is another than the one whose records the admin API's requests change.
        _made(admin.post("/tenants", json={"id": "caller", "limits": plenty}))
        key = _made(admin.post("/tenants/caller/keys"))["key"]
        key_id = _made(admin.post(f"/tenants/{TENANT}/keys"))["id"]
        prefix = {"model": running.model, "text": "You are kind."}
        _made(admin.put("/public-prefixes/kind", json=prefix))
    with httpx.Client(base_url=running.base_url, headers={"authorization": f"Bearer {key}"}) as http:
        session = _made(http.post("/sessions", json={"model": running.model, "ttl_s": 3600}))["id"]
    ours = {"model": running.model, "model_id": running.model, "session_id": session}
    theirs = {"model": running.model, "tenant_id": TENANT, "project_id": PROJECT, "key_id": key_id, "name": "kind"}
    return {
        "public": Target(f"{running.ready['http']}/openapi.json", key, ours),
        "admin": Target(f"{running.ready['admin']}/admin/v1/openapi.json", ADMIN_KEY, theirs),
    }


def run(target: Target, directory: Path, *options: str, seed: int, num_examples: int, limit_s: int) -> Outcome:
    """At most so many generated requests for each operation and phase; with more options of its command.

    Raises subprocess.TimeoutExpired behind `limit_s`, AssertionError when it could not run.
    """
    report = directory / "report.ndjson"
    command = [sys.executable, "-m", "schemathesis.cli", "run", target.document_url, "--exclude-checks", _EXCLUDED]
    command += ["--header", f"Authorization: Bearer {target.key}", "--seed", str(seed)]
    command += ["--max-examples", str(num_examples), "--generation-database", "none", "--continue-on-failure"]
    command += ["--report", "ndjson", "--report-ndjson-path", str(report), "--no-color", "--warnings", "off", *options]
    environment = os.environ | {
        "GEMLINE_THERE": json.dumps(target.there),
        "SCHEMATHESIS_HOOKS": "support.schemathesis_hooks",
        # Else what hypothesis learns of all characters would be learned anew.
        "HYPOTHESIS_STORAGE_DIRECTORY": str(Path(__file__).parents[2] / ".hypothesis"),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
    }
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
    )
    assert done.returncode in (0, 1) and report.exists(), done.stdout + done.stderr
    return _read(report, done.stdout)


def _read(report: Path, printed: str) -> Outcome:
    statuses: Counter[int] = Counter()
    failures: list[str] = []
    with report.open() as lines:
        for line in lines:
            scenario = json.loads(line).get("ScenarioFinished", {})
            recorder = scenario.get("recorder", {})
            for interaction in recorder.get("interactions", {}).values():
                # Without an answer the connection broke, which is the worst of faults.
                statuses[(interaction["response"] or {"status_code": 599})["status_code"]] += 1
            failures += [
                f"{recorder['label']}: {check['name']} of case {case}"
                for case, checks in recorder.get("checks", {}).items()
                for check in checks
                if check["status"] == "failure"
            ]
    return Outcome(statuses, failures, printed)


def _made(answer: httpx.Response) -> Any:
    assert answer.status_code in (200, 201), answer.text
    return answer.json()
