"""Two revisions of a model side by side, as bare processes: a share for the new one, all of it, none of it at once."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from support import pieces
from support.decode_workers import wait_for_workers
from support.noise_model.checkpoint import TINY, make_checkpoint
from support.sse import Told, complete
from support.stack import Running

from gemline.client import Client
from gemline.cluster.operations import operating
from gemline.cluster.records import Role

pytestmark = pytest.mark.slow

ASKED: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0.0, "ignore_eos": True}
AT_ONCE_S = 3.0  # what a change may take; gateways look twice a second


@dataclass(frozen=True)
class Platform:
    running: Running
    old: str  # what the old revision answers to ASKED
    new: str

    def give(self, new: float) -> None:
        """So much to the new release, from now on."""
        url = self.running.ready["redis_url"]
        asyncio.run(_put(url, {"old": 1 - new, "new": new}))

    def ask(self, num: int) -> list[str]:
        """Texts of so many requests, none of which has failed, each of one revision or the other."""
        with ThreadPoolExecutor(4) as pool:
            told: list[Told] = list(pool.map(lambda _: complete(self.running, **ASKED), range(num)))
        assert [it.error for it in told if it.error] == []
        assert {it.text for it in told} <= {self.old, self.new}
        return [it.text for it in told]

    def settle(self, text: str) -> float:
        """Until ten requests on end have this answer; how long it took."""
        begun_s = time.monotonic()
        while set(self.ask(10)) != {text}:
            assert time.monotonic() - begun_s < 60
        return time.monotonic() - begun_s


async def _put(redis_url: str, shares: dict[str, float]) -> None:
    async with operating(redis_url) as operations:
        await operations.releases("tests").put(pieces.MODEL, shares)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, redis_server: str) -> Iterator[Platform]:
    directory = tmp_path_factory.mktemp("canary")
    with ExitStack() as running:

        def start(release: str, seed: int) -> None:
            model = directory / release
            make_checkpoint(model, TINY, seed)
            options = ("--model-dir", str(model), "--release", release)
            exact = ("--dtype", "float32", "--threads", "1", "--prefill", "never")
            running.enter_context(pieces.worker(directory, "tokenization", redis_server, *options))
            running.enter_context(pieces.worker(directory, "decode", redis_server, *options, *exact))

        start("old", 0)
        gateway = running.enter_context(pieces.gateway(directory, redis_server))
        old = complete(gateway, **ASKED).text
        start("new", 1)
        wait_for_workers(gateway, 2)
        wait_for_workers(gateway, 2, Role.TOKENIZATION)
        assert {complete(gateway, **ASKED).text for _ in range(10)} == {old}  # until somebody says otherwise
        begun = Platform(gateway, old, "")
        begun.give(1.0)
        time.sleep(AT_ONCE_S)
        new = complete(gateway, **ASKED).text
        assert new != old
        begun.give(0.0)
        yield Platform(gateway, old, new)


def test_a_fifth_of_the_requests_go_to_the_new_revision(platform: Platform) -> None:
    platform.give(0.2)
    time.sleep(AT_ONCE_S)
    texts = platform.ask(200)
    print(f"{texts.count(platform.new)} of 200")
    assert 20 <= texts.count(platform.new) <= 62  # within five times the deviation of 200 draws


def test_under_load_a_release_is_promoted_and_taken_back_at_once_with_no_request_lost(platform: Platform) -> None:
    platform.give(0.2)
    with ThreadPoolExecutor(1) as beside:
        load = beside.submit(platform.ask, 150)
        platform.give(1.0)
        promoted_s = platform.settle(platform.new)
        platform.give(0.0)
        taken_back_s = platform.settle(platform.old)
        load.result()
    print(f"promoted after {promoted_s:.1f} s, taken back after {taken_back_s:.1f} s")


def test_a_session_stays_with_its_revision_and_moves_when_that_one_has_gone(platform: Platform) -> None:
    platform.give(0.5)
    time.sleep(AT_ONCE_S)
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0}
    with Client(platform.running.ready["grpc"], api_key=platform.running.ready["api_key"]) as client:
        sessions = [client.sessions.create(model=pieces.MODEL) for _ in range(8)]
        first = [session.chat("Hello", **options).text for session in sessions]
        assert len(set(first)) == 2  # some here, some there
        again = [session.chat("And then?", **options).text for session in sessions]
        for text in set(first):  # whoever began alike went on alike
            assert len({later for begun, later in zip(first, again, strict=True) if begun == text}) == 1
        platform.give(1.0)
        time.sleep(AT_ONCE_S)
        for session in sessions:
            assert session.chat("And then?", **options).text is not None
