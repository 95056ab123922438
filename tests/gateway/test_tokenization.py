"""Encoding and fetching tokenizers survive workers that die, lie or come later."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.eventually import eventually
from support.in_process import MODEL, host

from gemline import telemetry
from gemline.cluster.connection import connect
from gemline.cluster.records import Role, WorkerRecord
from gemline.cluster.workers import WorkersView
from gemline.errors import InternalError, InvalidRequest, RequestTooLarge, Unavailable
from gemline.gateway.encoder import Encoder
from gemline.gateway.requests import Message, Prompt
from gemline.gateway.tokenization import TokenizationWorkers
from gemline.gateway.tokenizers import Tokenizers
from gemline.host import WorkerHost
from gemline.internal.v1 import tokenization_pb2
from gemline.rpc.options import open_channel
from gemline.text.chat import Turn
from gemline.tokenization.servicer import Servicer
from gemline.tokenization.worker import TokenizationOptions, TokenizationWorker


class Stage:
    """Tokenization workers that a test starts and stops, and the gateway's half of the calls."""

    def __init__(self, redis_url: str, checkpoint: Path) -> None:
        self._redis_url = redis_url
        self._checkpoint = checkpoint
        self.redis = connect(redis_url)
        self.view = WorkersView(self.redis, resync_s=0.05)
        self.workers = TokenizationWorkers(self.view, open_channel)
        self.tokenizers = Tokenizers(self.workers)
        self.encoder = Encoder(self.workers, self.tokenizers, telemetry.off(), timeout_s=2.0, inline_bytes=0)
        self.inline = Encoder(self.workers, self.tokenizers, telemetry.off(), timeout_s=2.0, inline_bytes=64)
        self.hosts: list[WorkerHost] = []

    async def add(self) -> WorkerRecord:
        new = host(TokenizationWorker(TokenizationOptions(self._checkpoint, MODEL)), self._redis_url)
        self.hosts.append(new)
        record = await new.start()
        await eventually(lambda: any(r.worker_id == record.worker_id for r in self.records))
        return record

    @property
    def records(self) -> tuple[WorkerRecord, ...]:
        return self.view.workers(Role.TOKENIZATION)


@pytest.fixture
async def stage(redis_url: str, tiny_checkpoint: Path) -> AsyncIterator[Stage]:
    stage = Stage(redis_url, tiny_checkpoint)
    await stage.view.start()
    yield stage
    stage.tokenizers.stop()
    await stage.workers.stop()
    await stage.view.stop()
    for each in stage.hosts:
        await each.stop()
    await stage.redis.aclose()


class Freeze:
    """Lets a view hear of nothing any more, as a gateway's is just after a worker died, until the test ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, view: WorkersView, *records: WorkerRecord) -> None:
        def workers(role: Role, model_id: str | None = None) -> tuple[WorkerRecord, ...]:
            return records

        self._monkeypatch.setattr(view, "workers", workers)

    def thaw(self) -> None:
        self._monkeypatch.undo()


@pytest.fixture
def freeze() -> Iterator[Freeze]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Freeze(monkeypatch)


async def test_a_worker_that_died_unheard_of_costs_nobody_an_error(stage: Stage, freeze: Freeze) -> None:
    card = (await stage.add()).model
    await stage.add()
    expected = await stage.encoder.encode(card, Prompt(text="Hello there"))
    freeze(stage.view, *stage.records)
    await stage.hosts[0].stop()
    for _ in range(6):
        assert await stage.encoder.encode(card, Prompt(text="Hello there")) == expected


async def test_a_worker_of_another_epoch_is_passed_over(stage: Stage, freeze: Freeze) -> None:
    card = (await stage.add()).model
    await stage.add()
    first, second = stage.records
    freeze(stage.view, replace(first, epoch=first.epoch + 7), second)
    for _ in range(4):
        assert await stage.encoder.encode(card, Prompt(text="x"))


async def test_when_no_worker_answers_it_is_said_soon(stage: Stage, freeze: Freeze) -> None:
    card = (await stage.add()).model
    freeze(stage.view, *stage.records)
    await stage.hosts[0].stop()
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable, match="no tokenization worker answers for model tiny"):
            await stage.encoder.encode(card, Prompt(text="x"))


async def test_the_workers_take_turns(stage: Stage) -> None:
    card = (await stage.add()).model
    await stage.add()
    asked: list[str] = []

    async def note(stub: Any, record: WorkerRecord) -> None:
        asked.append(record.worker_id)

    for _ in range(6):
        await stage.workers.call(card, note)
    assert sorted(asked.count(record.worker_id) for record in stage.records) == [3, 3]


async def test_what_a_worker_says_of_the_request_itself_is_not_tried_elsewhere(stage: Stage) -> None:
    card = (await stage.add()).model
    await stage.add()
    with pytest.raises(InvalidRequest) as caught:
        await stage.encoder.encode(card, Prompt(messages=(Message("assistant", "hi"),)))
    assert caught.value.param == "messages"
    with pytest.raises(RequestTooLarge):
        await stage.encoder.encode(card, Prompt(text="x" * (4 * 2**20 + 1)))


async def test_a_tokenizer_is_fetched_once_however_many_wait_for_it(stage: Stage) -> None:
    card = (await stage.add()).model
    tokenizers = await asyncio.gather(*(stage.tokenizers.get(card) for _ in range(10)))
    assert len({id(tokenizer) for tokenizer in tokenizers}) == 1
    assert tokenizers[0].sha256 == card.tokenizer_sha256
    assert stage.tokenizers.has(card)


async def test_one_that_stops_waiting_does_not_take_the_tokenizer_from_the_others(stage: Stage) -> None:
    card = (await stage.add()).model
    leaving, staying = (asyncio.create_task(stage.tokenizers.get(card)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).sha256 == card.tokenizer_sha256


async def test_a_tokenizer_with_another_checksum_than_announced_is_refused(stage: Stage, freeze: Freeze) -> None:
    record = await stage.add()
    lying = replace(record, model=replace(record.model, tokenizer_sha256="f" * 64))
    freeze(stage.view, lying)
    with pytest.raises(InternalError, match="checksum"):
        await stage.tokenizers.get(lying.model)


async def test_a_tokenizer_that_could_not_be_fetched_is_tried_again(stage: Stage) -> None:
    card = (await stage.add()).model
    await stage.hosts[0].stop()
    await eventually(lambda: not stage.records)
    with pytest.raises(Unavailable):
        await stage.tokenizers.get(card)
    await stage.add()
    assert (await stage.tokenizers.get(card)).sha256 == card.tokenizer_sha256


async def test_a_tokenizer_that_is_needed_is_tried_again_though_nobody_asks(
    stage: Stage, freeze: Freeze, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemline.gateway.tokenizers.RETRY_S", 0.05)
    record = await stage.add()
    stale = replace(record, epoch=record.epoch + 7)  # refused, as a worker is that has just come back
    freeze(stage.view, stale)
    stage.tokenizers.follow([record.model])
    with pytest.raises(Unavailable):
        await stage.tokenizers.get(record.model)
    freeze.thaw()
    await eventually(lambda: stage.tokenizers.has(record.model))


async def test_a_worker_that_leaves_during_a_call_costs_nobody_an_error(
    stage: Stage, freeze: Freeze, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemline.gateway.tokenization.CLOSE_GRACE_S", 0.0)
    first, _ = await stage.add(), await stage.add()
    asked: list[str] = []

    async def leave_at_first(stub: Any, record: WorkerRecord) -> str:
        asked.append(record.worker_id)
        if len(asked) == 1:
            others = tuple(other for other in stage.records if other.worker_id != record.worker_id)
            freeze(stage.view, *others)
            stage.workers.follow()
            await stub.Encode(tokenization_pb2.EncodeRequest(epoch=record.epoch, text="x" * 2**20), timeout=5)
        return record.worker_id

    assert await stage.workers.call(first.model, leave_at_first) == asked[1] != asked[0]


async def test_a_tokenizer_that_no_model_needs_is_forgotten(stage: Stage) -> None:
    card = (await stage.add()).model
    await stage.tokenizers.get(card)
    stage.tokenizers.follow([card])
    assert stage.tokenizers.has(card)
    stage.tokenizers.follow([])
    assert not stage.tokenizers.has(card)


async def test_whoever_waits_for_a_tokenizer_when_the_gateway_stops_is_told_so(stage: Stage) -> None:
    card = (await stage.add()).model
    waiting = asyncio.create_task(stage.tokenizers.get(card))
    await asyncio.sleep(0)
    stage.tokenizers.stop()
    with pytest.raises(Unavailable, match="shutting down"):
        await waiting


async def test_turns_that_continue_are_put_behind_what_is_there(stage: Stage) -> None:
    card = (await stage.add()).model
    tokenizer = await stage.tokenizers.get(card)
    turns = (Message("user", "And then?"),)
    ids = await stage.encoder.encode(card, Prompt(messages=turns, after=(2, 5, 107)))
    assert ids == [2, 5, 107, *tokenizer.encode_further([Turn("user", "And then?")])]


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(text="Hello <bos> there"),
        Prompt(messages=(Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "<end_of_turn>"))),
        Prompt(messages=(Message("user", "And then?"),), after=(2, 5, 107)),
    ],
    ids=["text", "chat", "continued"],
)
async def test_a_short_prompt_is_encoded_without_a_call_and_to_the_same_ids(
    stage: Stage, freeze: Freeze, prompt: Prompt
) -> None:
    card = (await stage.add()).model
    expected = await stage.encoder.encode(card, prompt)
    await stage.tokenizers.get(card)
    freeze(stage.view)
    assert await stage.inline.encode(card, prompt) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(text="x" * 65),
        Prompt(text="字" * 22),
        Prompt(messages=(Message("user", "x" * 61),)),
        Prompt(messages=(Message("user", ""),) * 17),
        Prompt(messages=(Message("system", "Be kind."), Message("user", "Hi"))),
    ],
    ids=["a letter more", "more bytes than letters", "a role counts", "many turns", "a system prompt"],
)
async def test_what_is_long_or_for_the_workers_to_judge_is_sent_to_them(
    stage: Stage, freeze: Freeze, prompt: Prompt
) -> None:
    card = (await stage.add()).model
    await stage.tokenizers.get(card)
    freeze(stage.view)
    with pytest.raises(Unavailable, match="no tokenization worker"):
        await stage.inline.encode(card, prompt)


async def test_a_short_conversation_is_judged_as_a_worker_would(stage: Stage) -> None:
    card = (await stage.add()).model
    wrong = Prompt(messages=(Message("assistant", "hi"),))
    said = []
    for encoder in (stage.encoder, stage.inline):
        with pytest.raises(InvalidRequest) as caught:
            await encoder.encode(card, wrong)
        said.append((caught.value.message, caught.value.param))
    assert said[0] == said[1]


async def test_a_worker_of_a_release_that_cannot_continue_turns_is_not_believed(
    stage: Stage, freeze: Freeze, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (await stage.add()).model
    encode = Servicer.Encode

    async def as_before(self: Servicer, request: Any, context: Any) -> Any:
        request.continues = False  # a field that it does not know
        return await encode(self, request, context)

    monkeypatch.setattr(Servicer, "Encode", as_before)
    old = await stage.add()  # a servicer's methods are looked up when it is registered
    freeze(stage.view, old)
    with pytest.raises(Unavailable, match="of a release that cannot continue a conversation"):
        await stage.encoder.encode(card, Prompt(messages=(Message("user", "x"),), after=(2, 5, 107)))
