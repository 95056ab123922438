"""The gateway's core over real workers: a tiny Gemma 2, a real tokenizer, a real Redis."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.eventually import eventually
from support.in_process import MODEL, TENANT, InProcess, host

from gemline.cluster.connection import connect
from gemline.cluster.keys import ApiKeys, new_key
from gemline.cluster.workers import WorkersView
from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.engine.options import EngineOptions
from gemline.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotFound,
    Unauthenticated,
    Unavailable,
    WorkerLost,
)
from gemline.gateway.answer import Answer
from gemline.gateway.core import Gateway, new_request_id
from gemline.gateway.encoder import INLINE_BYTES
from gemline.gateway.requests import GenerationRequest, Message, Piece, Prompt, SamplingOptions, Tenant
from gemline.gateway.settings import GatewaySettings
from gemline.telemetry import off

HELLO = Prompt(text="Hello there")
CHAT = Prompt(messages=(Message("user", "Hello there"),))


async def begin(gateway: Gateway, prompt: Prompt = HELLO, model: str = MODEL, **sampling: Any) -> Answer:
    options = SamplingOptions(**({"temperature": 0.0, "ignore_eos": True} | sampling))
    return await gateway.generate(TENANT, GenerationRequest(new_request_id(), model, prompt, options))


async def pieces_of(answer: Answer) -> list[Piece]:
    return [piece async for piece in answer]


async def text_of(gateway: Gateway, prompt: Prompt = HELLO, **sampling: Any) -> str:
    return "".join(piece.text for piece in await pieces_of(await begin(gateway, prompt, **sampling)))


def num_requests(platform: InProcess) -> int:
    """Live requests on the decode worker."""
    return sum(platform.decode_worker.load())


async def test_an_answer_comes_in_pieces_and_the_last_one_has_reason_and_usage(platform: InProcess) -> None:
    answer = await begin(platform.gateway, max_tokens=12)
    pieces = await pieces_of(answer)
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    last = pieces[-1]
    assert last.finish_reason == "length"
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (answer.prompt_tokens, 12)
    assert answer.prompt_tokens == await platform.gateway.count_tokens(TENANT, MODEL, HELLO)


async def test_usage_says_how_much_of_the_prompt_was_found_in_a_prefix_cache(platform: InProcess) -> None:
    tenants = [Tenant("alpha"), Tenant("alpha"), Tenant("beta")]
    prompt = Prompt(text="A prompt of its own, and of more than one block of sixteen tokens. " * 3)
    options, found = SamplingOptions(temperature=0.0, max_tokens=3), []
    for tenant in tenants:
        request = GenerationRequest(new_request_id(), MODEL, prompt, options)
        pieces = await pieces_of(await platform.gateway.generate(tenant, request))
        usage = pieces[-1].usage
        assert usage is not None
        found.append(usage.cached_tokens)
        num_prompt = usage.prompt_tokens
    assert found == [0, (num_prompt - 1) // 16 * 16, 0]
    assert found[1] > 0


async def test_pieces_together_are_the_text_of_the_generated_ids(platform: InProcess) -> None:
    answer = await begin(platform.gateway, max_tokens=40, logprobs=0)
    pieces = await pieces_of(answer)
    data = b"".join(p.chosen.data for piece in pieces for p in piece.logprobs if p.chosen.token_id not in range(4))
    assert "".join(piece.text for piece in pieces) == data.decode(errors="replace")
    assert sum(len(piece.logprobs) for piece in pieces) == 40


async def test_one_seed_gives_one_answer_and_no_seed_gives_many(platform: InProcess) -> None:
    seeded = [await text_of(platform.gateway, temperature=1.0, seed=7, max_tokens=24) for _ in range(2)]
    unseeded = {await text_of(platform.gateway, temperature=1.0, max_tokens=24) for _ in range(4)}
    assert seeded[0] == seeded[1]
    assert len(unseeded) > 1


async def test_a_stop_string_ends_the_answer_before_it_and_frees_the_worker(platform: InProcess) -> None:
    whole = await text_of(platform.gateway, max_tokens=60)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 4]
    answer = await begin(platform.gateway, max_tokens=200, stop=(stop,))
    pieces = await pieces_of(answer)
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens < 200
    await eventually(lambda: num_requests(platform) == 0, timeout_s=1)


async def test_an_end_token_ends_the_answer_and_its_text_is_not_shown(platform: InProcess) -> None:
    pieces = await pieces_of(await begin(platform.gateway, max_tokens=8, logprobs=0))
    ids = [position.chosen.token_id for piece in pieces for position in piece.logprobs]
    end_id = ids[5]
    first = ids.index(end_id)
    stopped = await pieces_of(await begin(platform.gateway, max_tokens=8, stop_token_ids=(end_id,)))
    shown = await platform.gateway.detokenize(TENANT, MODEL, tuple(ids[:first]))
    assert "".join(piece.text for piece in stopped) == shown
    assert stopped[-1].finish_reason == "stop"
    assert stopped[-1].usage is not None
    assert stopped[-1].usage.completion_tokens == first + 1


async def test_many_answers_at_once_are_the_same_as_one_by_one(platform: InProcess) -> None:
    prompts = [Prompt(text=f"number {i} of the prompts") for i in range(8)]
    alone = [await text_of(platform.gateway, prompt, max_tokens=20) for prompt in prompts]
    together = await asyncio.gather(*(text_of(platform.gateway, prompt, max_tokens=20) for prompt in prompts))
    assert list(together) == alone


async def test_a_conversation_is_read_in_the_models_own_template(platform: InProcess) -> None:
    ids = await platform.gateway.tokenize(TENANT, MODEL, CHAT)
    text = await platform.gateway.detokenize(TENANT, MODEL, tuple(ids))
    assert text == "<bos><start_of_turn>user\nHello there<end_of_turn>\n<start_of_turn>model\n"
    assert await text_of(platform.gateway, CHAT, max_tokens=8) == await text_of(
        platform.gateway, Prompt(token_ids=tuple(ids)), max_tokens=8
    )


async def test_token_ids_get_a_bos_only_when_they_have_none(platform: InProcess) -> None:
    ids = await platform.gateway.tokenize(TENANT, MODEL, HELLO)
    for given in (ids, ids[1:]):
        assert await platform.gateway.tokenize(TENANT, MODEL, Prompt(token_ids=tuple(given))) == ids


async def test_a_reader_that_leaves_frees_the_worker_within_a_step(platform: InProcess) -> None:
    async with await begin(platform.gateway, max_tokens=240) as answer:
        await anext(answer)
        assert num_requests(platform) == 1
    await eventually(lambda: num_requests(platform) == 0, timeout_s=1)
    assert [piece async for piece in answer] == []


async def test_closing_an_answer_releases_whoever_waits_for_its_next_piece(platform: InProcess) -> None:
    answer = await begin(platform.gateway, max_tokens=240)
    reader = asyncio.create_task(pieces_of(answer))
    await asyncio.sleep(0.02)
    await answer.aclose()
    await answer.aclose()
    pieces = await asyncio.wait_for(reader, 10)
    assert all(piece.finish_reason is None for piece in pieces)


@pytest.mark.parametrize(
    ("key", "message"), [(None, "no API key"), ("", "no API key"), ("gk_00000000_wrong", "nobody has this API key")]
)
async def test_a_missing_or_wrong_key_is_refused(platform: InProcess, key: str | None, message: str) -> None:
    with pytest.raises(Unauthenticated, match=message):
        await platform.gateway.authenticate(key)


async def test_while_redis_is_away_a_new_key_is_told_so_and_nothing_of_the_inside() -> None:
    redis = connect("redis://127.0.0.1:1")
    gateway = Gateway(GatewaySettings(), WorkersView(redis), ApiKeys(redis, None), off())
    with pytest.raises(Unavailable, match="API keys cannot be checked now") as caught:
        await gateway.authenticate(new_key()[1])
    assert "127.0.0.1" not in caught.value.message
    await redis.aclose()


async def test_a_right_key_names_its_tenant(platform: InProcess) -> None:
    assert (await platform.gateway.authenticate(platform.api_key)).tenant_id == TENANT.tenant_id


async def test_the_models_are_those_of_the_decode_workers(platform: InProcess) -> None:
    assert platform.gateway.models(TENANT) == (platform.decode_worker.card,)
    assert platform.gateway.model(TENANT, MODEL).context_length == 256


async def test_an_unknown_model_is_named_with_those_that_there_are(platform: InProcess) -> None:
    with pytest.raises(ModelNotFound, match="there is no model 'gpt-9'; there is: tiny") as caught:
        await begin(platform.gateway, model="gpt-9")
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("prompt", "param", "message"),
    [
        (Prompt(text="half a \ud83d pair"), "prompt", "not valid Unicode"),
        (Prompt(messages=(Message("user", "\udc00"),)), "messages", r"messages\[0\].content is not valid Unicode"),
        (Prompt(messages=()), "messages", "messages is empty"),
        (Prompt(messages=(Message("system", "be nice"), Message("user", "hi"))), "messages", "system"),
        (Prompt(messages=(Message("assistant", "hi"),)), "messages", "'user' must stand there"),
        (Prompt(messages=(Message("nobody", "hi"),)), "messages", "nobody"),
        (Prompt(token_ids=(2, 5000)), "prompt", "5000 is not in the vocabulary of 1024"),
        (Prompt(token_ids=(-1,)), "prompt", "-1 is not in the vocabulary"),
    ],
)
async def test_a_prompt_that_cannot_be_read_is_refused_by_name(
    platform: InProcess, prompt: Prompt, param: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        await begin(platform.gateway, prompt)
    assert caught.value.param == param


async def test_a_prompt_over_the_context_is_refused_with_both_numbers(platform: InProcess) -> None:
    with pytest.raises(ContextLengthExceeded, match=r"256 tokens, but tiny has a context of 256") as caught:
        await begin(platform.gateway, Prompt(token_ids=(2, *[300] * 255)))
    assert caught.value.param == "prompt"
    last = await pieces_of(await begin(platform.gateway, Prompt(token_ids=(2, *[300] * 254))))
    assert last[-1].usage is not None
    assert last[-1].usage.completion_tokens == 1


async def test_sampling_is_checked_before_the_prompt_is_read(platform: InProcess) -> None:
    with pytest.raises(InvalidRequest, match="temperature must be from 0 to 2, not 3"):
        await begin(platform.gateway, Prompt(token_ids=(5000,)), temperature=3.0)


async def test_a_dead_decode_worker_is_a_clear_error_when_no_other_comes(platform: InProcess) -> None:
    answer = await begin(platform.gateway, max_tokens=240)
    await anext(answer)
    await platform.decode_worker.stop()
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(pieces_of(answer), 10)
    await platform.decode.stop()
    await eventually(lambda: not platform.gateway.ready())
    async with asyncio.timeout(1):
        with pytest.raises(Unavailable, match="now; try again"):
            await begin(platform.gateway)


async def test_without_a_tokenization_worker_a_long_prompt_is_unavailable(platform: InProcess) -> None:
    expected = await text_of(platform.gateway, max_tokens=2)
    await platform.tokenization.stop()
    await eventually(lambda: not platform.gateway.ready())
    with pytest.raises(Unavailable, match="no tokenization worker"):
        await begin(platform.gateway, Prompt(text="x" * (INLINE_BYTES + 1)))
    assert await text_of(platform.gateway, max_tokens=2) == expected  # a short one needs none


async def test_a_worker_that_comes_later_is_found(platform: InProcess, redis_url: str, tiny_checkpoint: Path) -> None:
    await platform.decode.stop()
    await eventually(lambda: not platform.gateway.ready())
    engine = EngineOptions(num_kv_blocks=64, num_threads=1)
    second = host(DecodeWorker(DecodeOptions(tiny_checkpoint, MODEL, engine, prefill="never")), redis_url)
    await second.start()
    try:
        await eventually(platform.gateway.ready)
        assert await text_of(platform.gateway, max_tokens=4)
    finally:
        await second.stop()


async def test_a_draining_worker_hands_nobody_an_error(
    platform: InProcess, redis_url: str, tiny_checkpoint: Path
) -> None:
    engine = EngineOptions(num_kv_blocks=256, num_threads=1)
    second = host(DecodeWorker(DecodeOptions(tiny_checkpoint, MODEL, engine, prefill="never")), redis_url)
    await second.start()
    try:
        links = platform.gateway._links._links
        await eventually(lambda: sum(link.takes_requests for link in links.values()) == 2)
        expected = await text_of(platform.gateway, max_tokens=16)
        running = [asyncio.create_task(text_of(platform.gateway, max_tokens=16)) for _ in range(8)]
        await asyncio.sleep(0.01)
        # It refuses before anybody has heard that it drains.
        platform.decode_worker._requests.draining = True
        running += [asyncio.create_task(text_of(platform.gateway, max_tokens=16)) for _ in range(8)]
        await asyncio.sleep(0.01)
        await platform.decode.drain()
        await platform.decode.stop()
        assert await asyncio.gather(*running) == [expected] * 16
    finally:
        await second.stop()


async def test_a_gateway_that_was_stopped_takes_nothing(platform: InProcess) -> None:
    await platform.gateway.stop()
    assert not platform.gateway.ready()
    with pytest.raises(Unavailable):
        await begin(platform.gateway)


async def test_a_draining_gateway_is_not_ready_but_serves_who_still_comes(platform: InProcess) -> None:
    platform.gateway.drain()
    assert not platform.gateway.ready()
    assert await text_of(platform.gateway, max_tokens=4)


def test_request_ids_are_ours_and_differ() -> None:
    ids = {new_request_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(request_id) == 28 and request_id.startswith("req_") for request_id in ids)
