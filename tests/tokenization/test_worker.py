import hashlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc
import grpc.aio
import pytest

from gemline import telemetry
from gemline.cluster.connection import connect
from gemline.cluster.records import Role, WorkerRecord
from gemline.cluster.workers import WorkersView
from gemline.engine.checkpoint import revision
from gemline.errors import CheckpointError, InvalidRequest, RequestTooLarge, StaleEpoch, Unavailable
from gemline.host import HostSettings, WorkerContext, WorkerHost
from gemline.internal.v1.tokenization_pb2 import EncodeRequest, FetchTokenizerRequest, Turn
from gemline.internal.v1.tokenization_pb2_grpc import TokenizationStub
from gemline.rpc.options import open_channel
from gemline.rpc.status import from_rpc_error
from gemline.text import chat
from gemline.text.tokenizer import Tokenizer, tokenizer_sha256
from gemline.tokenization.worker import TokenizationOptions, TokenizationWorker

if TYPE_CHECKING:
    from gemline.internal.v1.tokenization_pb2_grpc import TokenizationAsyncStub


class Served(NamedTuple):
    """A worker in its real host, and a way to call it."""

    worker: TokenizationWorker
    host: WorkerHost
    record: WorkerRecord
    stub: "TokenizationAsyncStub"


@pytest.fixture
async def served(tiny_checkpoint: Path, redis_url: str) -> AsyncIterator[Served]:
    worker = TokenizationWorker(TokenizationOptions(tiny_checkpoint, "tiny", max_text_bytes=100_000))
    host = WorkerHost(worker, HostSettings(redis_url, metrics_port=None))
    record = await host.start()
    async with open_channel(record.address) as channel:
        yield Served(worker, host, record, TokenizationStub(channel))
    await host.stop()


def _context() -> WorkerContext:
    """For workers that are started without a host: they meet no Redis."""
    return WorkerContext(WorkersView(connect("redis://127.0.0.1:1")), telemetry.off(), lambda: True)


async def test_its_card_tells_what_the_checkpoint_holds(served: Served, tiny_checkpoint: Path) -> None:
    card = served.record.model
    assert served.record.role is Role.TOKENIZATION
    assert (card.model_id, card.revision) == ("tiny", revision(tiny_checkpoint))
    assert (card.context_length, card.vocab_size, card.stop_token_ids) == (256, 1024, (1, 107))
    assert card.tokenizer_sha256 == hashlib.sha256((tiny_checkpoint / "tokenizer.json").read_bytes()).hexdigest()
    assert card.tokenizer_sha256 == tokenizer_sha256(tiny_checkpoint)


async def test_it_encodes_a_raw_prompt(served: Served, tiny_checkpoint: Path) -> None:
    text = "<start_of_turn>user\nhello 字"
    answer = await served.stub.Encode(EncodeRequest(epoch=served.record.epoch, text=text))
    assert list(answer.token_ids) == Tokenizer.load(tiny_checkpoint).encode_prompt(text)


async def test_it_encodes_a_conversation(served: Served, tiny_checkpoint: Path) -> None:
    turns = [chat.Turn("user", "hello"), chat.Turn("model", "hi"), chat.Turn("user", "<end_of_turn>")]
    messages = [Turn(role=turn.role, content=turn.content) for turn in turns]
    answer = await served.stub.Encode(EncodeRequest(epoch=served.record.epoch, turns=messages, text="not this"))
    assert list(answer.token_ids) == Tokenizer.load(tiny_checkpoint).encode_chat(turns)


async def test_it_encodes_turns_that_continue_a_conversation(served: Served, tiny_checkpoint: Path) -> None:
    request = EncodeRequest(epoch=served.record.epoch, turns=[Turn(role="user", content="and then?")], continues=True)
    answer = await served.stub.Encode(request)
    expected = Tokenizer.load(tiny_checkpoint).encode_further([chat.Turn("user", "and then?")])
    assert list(answer.token_ids) == expected


async def test_many_calls_at_once_get_each_its_own_answer(served: Served, tiny_checkpoint: Path) -> None:
    tokenizer = Tokenizer.load(tiny_checkpoint)
    texts = [f"question {index} " * (index * 40 + 1) for index in range(40)]
    calls = [served.stub.Encode(EncodeRequest(epoch=served.record.epoch, text=text)) for text in texts]
    answers = [list((await call).token_ids) for call in calls]
    assert answers == [tokenizer.encode_prompt(text) for text in texts]


async def test_the_tokenizer_can_be_fetched_in_pieces_of_at_most_a_mebibyte(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    shutil.copytree(tiny_checkpoint, large)
    (large / "tokenizer.json").write_bytes((tiny_checkpoint / "tokenizer.json").read_bytes() + b" " * 2**20)
    worker = TokenizationWorker(TokenizationOptions(large, "tiny"))
    await worker.start(_context())
    server = grpc.aio.server()
    worker.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        pieces = [
            piece.data async for piece in TokenizationStub(channel).FetchTokenizer(FetchTokenizerRequest(epoch=0))
        ]
    await server.stop(0)
    assert [len(piece) <= 2**20 for piece in pieces] == [True, True]
    assert b"".join(pieces) == (large / "tokenizer.json").read_bytes()
    assert Tokenizer.load(b"".join(pieces)).sha256 == worker.card.tokenizer_sha256


async def test_a_call_for_another_life_is_refused(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.Encode(EncodeRequest(epoch=served.record.epoch + 1, text="hello"))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert isinstance(from_rpc_error(caught.value), StaleEpoch)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in served.stub.FetchTokenizer(FetchTokenizerRequest(epoch=served.record.epoch + 1)):
            pass
    assert isinstance(from_rpc_error(caught.value), StaleEpoch)


async def test_what_is_wrong_with_a_request_reaches_the_caller_and_the_worker_goes_on(served: Served) -> None:
    epoch = served.record.epoch
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.Encode(EncodeRequest(epoch=epoch, turns=[Turn(role="system", content="be kind")]))
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidRequest)
    assert error.param == "messages"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.Encode(EncodeRequest(epoch=epoch, text="a" * 100_001))
    assert isinstance(from_rpc_error(caught.value), RequestTooLarge)
    assert (await served.stub.Encode(EncodeRequest(epoch=epoch, text=""))).token_ids == [2]


async def test_a_drain_waits_for_what_is_being_encoded(served: Served) -> None:
    call = served.stub.Encode(EncodeRequest(epoch=served.record.epoch, text="the answer is " * 5_000))
    await call.wait_for_connection()
    await served.host.drain()
    assert served.worker.load() == (0, 0)
    assert len((await call).token_ids) > 5_000


async def test_it_is_healthy_between_start_and_stop(tiny_checkpoint: Path) -> None:
    worker = TokenizationWorker(TokenizationOptions(tiny_checkpoint, "tiny"))
    with pytest.raises(Unavailable):
        worker.check_health()
    await worker.start(_context())
    worker.check_health()
    await worker.drain(1.0)
    await worker.stop()
    with pytest.raises(Unavailable):
        worker.check_health()


async def test_a_checkpoint_without_a_tokenizer_is_refused_by_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"broken/tokenizer\.json cannot be read"):
        await TokenizationWorker(TokenizationOptions(tmp_path / "broken", "tiny")).start(_context())


async def test_a_tokenizer_with_more_ids_than_the_model_has_is_refused_with_both_numbers(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    config = json.loads((broken / "config.json").read_text()) | {"vocab_size": 1000}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"token ids up to 1023, but vocab_size in config\.json is 1000"):
        await TokenizationWorker(TokenizationOptions(broken, "tiny")).start(_context())
