"""Starts a program that ends when its parent ends, even if the parent was killed. Run as a file, by path; Linux.

    subprocess.Popen(orphan.command(["redis-server", "-"]))

runs this file with a bare interpreter, which asks the kernel for a signal at the parent's death and then becomes the
program (one process, the same pid). The kernel counts the *thread* that started it as the parent: start such programs
from a thread that lives as long as they should, the main one.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def command(argv: Sequence[str], death_signal: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command line that runs `argv` (its first word a path, or a name on PATH) as a child that dies with us."""
    # -I -S: no site packages, no environment: it starts in a few milliseconds and cannot be led astray.
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(death_signal)), *argv]


def die_with_parent(parent_pid: int, death_signal: int) -> None:
    """Has the kernel send this process `death_signal` when its parent ends; if that has happened already, exits."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        raise SystemExit(1)


def main() -> None:
    """`orphan.py PARENT_PID SIGNAL PROGRAM [ARGUMENT...]`: becomes the program."""
    parent_pid, death_signal, program, *arguments = sys.argv[1:]
    die_with_parent(int(parent_pid), int(death_signal))
    os.execvp(program, [program, *arguments])  # noqa: S606


if __name__ == "__main__":
    main()
