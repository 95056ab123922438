import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from gemline.cluster.embedded import EmbeddedRedis

PARENT = """
import sys, time
from pathlib import Path
from gemline.cluster.embedded import EmbeddedRedis
server = EmbeddedRedis(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
time.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_serves_until_it_is_stopped(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    with redis.Redis.from_url(server.start()) as client:
        client.set("name", "value")
        assert client.get("name") == b"value"
        server.stop()
        with pytest.raises(redis.exceptions.ConnectionError):
            client.get("name")


def test_two_of_them_do_not_meet(tmp_path: Path) -> None:
    servers = [EmbeddedRedis(tmp_path / name) for name in ("one", "two")]
    urls = [server.start() for server in servers]
    assert len(set(urls)) == 2
    with redis.Redis.from_url(urls[0]) as one, redis.Redis.from_url(urls[1]) as two:
        one.set("name", "value")
        assert two.get("name") is None
    for server in servers:
        server.stop()


def test_nobody_gets_in_without_the_password(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    url = server.start()
    password = url[url.index("//") + 3 : url.index("@")]
    stranger = redis.Redis.from_url(url.replace(f":{password}@", ""))
    with stranger, pytest.raises(redis.exceptions.AuthenticationError):
        stranger.set("name", "value")
    assert password not in Path(f"/proc/{server.pid}/cmdline").read_text()
    server.stop()


def test_a_folder_with_a_space_in_its_name_is_fine(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "a folder")
    server.start()
    assert stat.S_ISREG((tmp_path / "a folder" / "redis.log").stat().st_mode)
    server.stop()


def test_stopping_twice_is_fine(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    server.start()
    server.stop()
    server.stop()
    assert server.pid is None


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        os.kill(parent.pid, signal.SIGKILL)
    for _ in range(500):
        if not is_running(pid):
            return
        time.sleep(0.01)
    pytest.fail("the redis-server outlived its parent")
