"""`gemline rollout` as an operator calls it: by a kubeconfig, one line when something is wrong."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
from rollout.conftest import World
from support.commands import gemline
from support.eventually import eventually


@pytest.fixture
def config(world: World, tmp_path: Path) -> str:
    """A kubeconfig of the stand-in; its namespace is the release's."""
    names = {"context": {"cluster": "c", "user": "u", "namespace": "ns"}, "name": "here"}
    told = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": world.kube.url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [names],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(told))
    return str(path)


async def test_status_tells_old_and_new_with_their_shares(upgrade: World, config: str, tmp_path: Path) -> None:
    await eventually(lambda: upgrade.num_known() == 2)
    await upgrade.shares.put("tiny", {"old": 0.75, "new": 0.25})
    done = await run(upgrade, config, tmp_path, "status", "prod")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["gateway", "prod-gemline:", "up", "to", "date"]
    assert [(row[0], row[1], row[-1]) for row in rows[2:]] == [("new", "new", "25%"), ("old", "old", "75%")]


async def test_what_is_wrong_is_one_line(world: World, config: str, tmp_path: Path) -> None:
    done = await run(world, config, tmp_path, "status", "prd")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("gemline: release 'prd' in namespace ns has 0 objects")
    assert len(done.stderr.splitlines()) == 1
    done = await run(world, str(tmp_path / "none"), tmp_path, "status", "prod")
    assert done.returncode == 1
    assert "no cluster is known" in done.stderr


async def run(world: World, config: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        lambda: gemline("rollout", *words, home=home, GEMLINE_REDIS_URL=world.redis_url, KUBECONFIG=config)
    )
