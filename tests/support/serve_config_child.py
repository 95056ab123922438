"""A Ray of one machine that serves a config as KubeRay hands it over: `python serve_config_child.py CONFIG.yaml`.

What each worker group of the chart brings is here this machine's: one of each resource that the config asks for.
"""

import sys
import tempfile
import time
from pathlib import Path

import ray
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

_LIMIT_S = 300.0


def main() -> None:
    """Deploy, say `running`, and go when standard input ends."""
    config = ServeDeploySchema.model_validate(yaml.safe_load(Path(sys.argv[1]).read_text()))
    options = [app.deployments[0].ray_actor_options for app in config.applications]
    resources = {name: amount for each in options for name, amount in each.resources.items()}
    # Ray takes more than 107 bytes of path for its sockets ill.
    with tempfile.TemporaryDirectory(prefix="gl-", ignore_cleanup_errors=True) as place:
        ray.init(
            address="local",
            num_cpus=len(options) + 1,  # so many processes Ray starts ahead of the replicas that will be in them
            resources=resources,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=80 * 1024 * 1024,
            _temp_dir=place,
        )
        serve.start(proxy_location="Disabled")
        client = _get_global_client()
        assert client is not None
        client.deploy_apps(config)
        try:
            wait_until_running()
            print("running", flush=True)
            sys.stdin.read()
        finally:
            for name in serve.status().applications:
                serve.delete(name)
            ray.shutdown()


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


if __name__ == "__main__":
    main()
