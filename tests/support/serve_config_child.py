"""A Ray of one machine that serves a config as KubeRay hands it over: `python serve_config_child.py CLUSTER.yaml`.

The file has `serve`, the config, and `pods`, the `rayStartParams` of each: a Ray node for each.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import serve
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

_LIMIT_S = 300.0


def main() -> None:
    """Deploy, say in a line of JSON what is where as soon as all runs, and go when standard input ends."""
    told = yaml.safe_load(Path(sys.argv[1]).read_text())
    config = ServeDeploySchema.model_validate(told["serve"])
    # Ray takes more than 107 bytes of path for its sockets ill.
    with tempfile.TemporaryDirectory(prefix="gl-", ignore_cleanup_errors=True) as place:
        ray.init(
            address="local",
            num_cpus=0,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=80 * 1024 * 1024,
            _temp_dir=place,
        )
        serve.start(proxy_location="Disabled")
        with nodes(ray.get_runtime_context().gcs_address, place, told["pods"]):
            client = _get_global_client()
            assert client is not None
            client.deploy_apps(config)
            try:
                wait_until_running()
                print(json.dumps(places()), flush=True)
                sys.stdin.read()
            finally:
                for name in serve.status().applications:
                    serve.delete(name)
        ray.shutdown()


@contextmanager
def nodes(address: str, place: str, pods: list[dict[str, str]]) -> Iterator[None]:
    """One for each pod."""
    running = []
    try:
        for params in pods:
            own = RayParams(
                gcs_address=address,
                node_ip_address="127.0.0.1",
                num_cpus=int(params["num-cpus"]),
                num_gpus=int(params["num-gpus"]),
                # A string to the shell in which KubeRay calls `ray start`, and JSON then.
                resources=json.loads(json.loads(params["resources"])),
                object_store_memory=int(params["object-store-memory"]),
                min_worker_port=0,
                max_worker_port=0,
                node_manager_port=0,
                temp_dir=place,
                dashboard_agent_listen_port=None,  # the head has one
                include_log_monitor="",  # and one of these; Ray's type is text, and None would mean yes
            )
            running.append(Node(own, head=False, shutdown_at_exit=True, spawn_reaper=True))
        yield
    finally:
        for node in running:
            node.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)


def wait_until_running() -> None:
    """Raises with Serve's own words when an application cannot be."""
    limit = time.monotonic() + _LIMIT_S
    while True:
        found = serve.status().applications
        if found and all(app.status == ApplicationStatus.RUNNING for app in found.values()):
            return
        if failed := [app for app in found.values() if app.status == ApplicationStatus.DEPLOY_FAILED]:
            raise SystemExit(f"{failed[0].message} {[it.message for it in failed[0].deployments.values()]}")
        if time.monotonic() > limit:
            raise SystemExit(f"not running after {_LIMIT_S:.0f} s: {found}")
        time.sleep(0.2)


def places() -> dict[str, Any]:
    """Nodes: of the replica of each application, of every rank that is an actor, of each group's bundles in order."""
    actors = [it for it in ray._private.state.actors().values() if it["State"] == "ALIVE"]
    groups = [it for it in ray.util.placement_group_table().values() if it["state"] == "CREATED"]
    return {
        "replicas": {_application(it["Name"]): it["Address"]["NodeID"] for it in actors if "#" in it["Name"]},
        "ranks": [it["Address"]["NodeID"] for it in actors if it["ActorClassName"] == "RankActor"],
        "groups": {
            _application(it["name"]): (it["strategy"], [it["bundles_to_node_id"][index] for index in it["bundles"]])
            for it in groups
        },
    }


def _application(replica: str) -> str:
    """Serve names a replica, and its group, `SERVE_REPLICA::APPLICATION#DEPLOYMENT#ID`."""
    return replica.partition("#")[0].removeprefix("SERVE_REPLICA::")


if __name__ == "__main__":
    main()
