import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gemline import orphan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")

PARENT = """
import subprocess, sys, time
from gemline import orphan
child = subprocess.Popen(orphan.command(["sleep", "60"]))
print(child.pid, flush=True)
time.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} outlived its parent"
        time.sleep(0.01)


def test_a_program_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        time.sleep(0.2)  # the child becomes `sleep`
        assert is_running(child_pid)
        parent.send_signal(signal.SIGKILL)
    wait_until_gone(child_pid)


def test_a_program_whose_parent_is_gone_already_does_not_start(tmp_path: Path) -> None:
    argv = orphan.command(["touch", str(tmp_path / "started")])
    argv[argv.index(str(os.getpid()))] = "1"
    assert subprocess.run(argv, check=False).returncode == 1
    assert not (tmp_path / "started").exists()


def test_a_program_keeps_its_pid_arguments_and_exit_code() -> None:
    argv = orphan.command([sys.executable, "-c", "import os, sys; print(os.getpid(), sys.argv[1]); sys.exit(3)", "a b"])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        output, _ = child.communicate()
    assert output.split(maxsplit=1) == [str(child.pid), "a b\n"]
    assert child.returncode == 3
