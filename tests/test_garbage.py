import subprocess
import sys

# A process of its own: what a test suite has frozen would stay frozen.
PROCESS = """
import gc
from gemline import garbage

class Ring:
    ended = 0

    def __init__(self):
        self.me = self

    def __del__(self):
        Ring.ended += 1

garbage.starting()
dropped, kept = Ring(), Ring()
del dropped
many = [[] for _ in range(10 * gc.get_threshold()[0])]
while_starting = Ring.ended
garbage.started()
once_started = Ring.ended
del kept
gc.collect()
of_the_start = Ring.ended - once_started
Ring()
gc.collect()
print(while_starting, once_started, of_the_start, Ring.ended - once_started - of_the_start, gc.isenabled())
"""


def test_garbage_is_looked_for_after_the_start_and_among_what_is_new() -> None:
    told = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["0", "1", "0", "1", "True"]


def test_triton_has_nothing_to_complain_of_at_the_end() -> None:
    quiet = "from gemline import garbage; import triton; garbage.started(); garbage.ending()"
    assert subprocess.run([sys.executable, "-c", quiet], capture_output=True, check=True).stderr == b""
