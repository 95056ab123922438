"""Stacks that several end-to-end tests share: started once, never killed by a test.

Who uses them has the mark xdist_group("shared-stacks"): they are started once for all, and not by each worker of xdist.
"""

from collections.abc import Iterator

import pytest
from support.stack import Running, start_stack

EXACT = ("--dtype", "float32")  # in which the same tokens come of every way to serve them


@pytest.fixture(scope="session")
def split_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Processes; prefill apart from decode."""
    running = start_stack(tmp_path_factory.mktemp("split"), "--runner", "process", *EXACT)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def colocated_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Processes; decode workers prefill for themselves."""
    running = start_stack(
        tmp_path_factory.mktemp("colocated"), "--runner", "process", *EXACT, "--topology", "colocated"
    )
    yield running
    running.stop()
