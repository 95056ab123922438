"""Generated requests over the live OpenAPI documents: no fault of ours, and no answer that they do not have.

A short run with a fixed seed; `tests/bench/contract.py` is the long one.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.contract import Target, run, start, targets

pytestmark = pytest.mark.slow

LIMIT_S = 170


@pytest.fixture(scope="module")
def apis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    running = start(tmp_path_factory.mktemp("contract"))
    yield targets(running)
    running.stop()


@pytest.mark.parametrize("api", ["public", "admin"])
def test_answers_are_what_the_document_says_and_none_is_a_fault(
    apis: dict[str, Target], tmp_path: Path, api: str
) -> None:
    outcome = run(apis[api], tmp_path, "--phases", "coverage,fuzzing", seed=1, num_examples=3, limit_s=LIMIT_S)
    assert not outcome.failures, outcome.printed
    assert outcome.num_faults == 0, outcome.printed
    # Of what is refused for itself, of what is not there, and of what is right.
    assert min(outcome.statuses[status] for status in (200, 400, 401, 404, 405)) > 0
    assert outcome.statuses.total() > 500
