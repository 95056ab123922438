"""Whole answers, counts and models, the same through both clients."""

import asyncio
from collections.abc import Callable

import pytest
from support.client_api import ClientApi, read_all
from support.fake_gateway import REQUEST_ID, FakeGateway, Say, Served

from gemline.client import Message, Model, PositionLogprobs, TokenLogprob, Usage
from gemline.errors import InvalidRequest, Unavailable
from gemline.v1 import inference_pb2 as pb


async def test_generate_gives_the_whole_answer(api: ClientApi) -> None:
    answer = await api.generate("Once")
    assert (answer.text, answer.finish_reason, answer.request_id) == ("Hello", "stop", REQUEST_ID)
    assert answer.usage == Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=4)
    assert answer.usage.total_tokens == 10


async def test_chat_gives_the_models_turn_ready_to_be_sent_back(api: ClientApi, gateway: FakeGateway) -> None:
    messages = [Message("user", "Hi")]
    answer = await api.chat(messages)
    assert answer.message == Message("assistant", "Hello")
    assert answer.finish_reason == "length"
    await api.chat([*messages, answer.message, {"role": "user", "content": "And?"}])
    last = gateway.requests[-1]
    assert isinstance(last, pb.ChatRequest)
    roles = [pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_USER]
    assert [(m.role, m.content) for m in last.messages] == list(zip(roles, ["Hi", "Hello", "And?"], strict=True))


async def test_every_sampling_option_reaches_the_gateway_as_given(api: ClientApi, gateway: FakeGateway) -> None:
    await api.generate(
        "x",
        max_tokens=5,
        temperature=0.5,
        top_k=3,
        top_p=0.25,
        min_p=0.125,
        seed=2**64 - 1,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        logit_bias={7: -100.0},
        stop=["a", "b"],
        stop_token_ids=[1, 2],
        ignore_eos=True,
        logprobs=0,
    )
    (request,) = gateway.requests
    assert isinstance(request, pb.GenerateRequest)
    assert request.sampling == pb.SamplingOptions(
        max_tokens=5,
        temperature=0.5,
        top_k=3,
        top_p=0.25,
        min_p=0.125,
        seed=2**64 - 1,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        logit_bias={7: -100.0},
        stop=["a", "b"],
        stop_token_ids=[1, 2],
        ignore_eos=True,
        logprobs=0,
    )


async def test_an_option_that_is_none_or_left_out_is_not_sent(api: ClientApi, gateway: FakeGateway) -> None:
    await api.generate("x", temperature=None)
    (request,) = gateway.requests
    assert isinstance(request, pb.GenerateRequest)
    assert not request.sampling.ListFields()


async def test_the_key_goes_with_every_call(api: ClientApi, gateway: FakeGateway) -> None:
    await api.generate("x")
    await api.count_tokens("x")
    assert [metadata["authorization"] for metadata in gateway.metadata] == ["Bearer gk_test"] * 2


async def test_without_a_key_no_authorization_is_sent(
    make_api: Callable[..., ClientApi], served: Served, gateway: FakeGateway
) -> None:
    api = make_api(served.address, api_key=None)
    await api.generate("x")
    assert "authorization" not in gateway.metadata[0]
    await api.close()


async def test_the_only_model_is_asked_when_none_is_named(api: ClientApi, gateway: FakeGateway) -> None:
    await api.generate("x")
    (request,) = gateway.requests
    assert isinstance(request, pb.GenerateRequest)
    assert request.model == "gemma"


async def test_the_calls_model_goes_before_the_clients(
    make_api: Callable[..., ClientApi], served: Served, gateway: FakeGateway
) -> None:
    api = make_api(served.address, model="mine")
    await api.generate("x")
    await api.generate("x", model="other")
    assert [getattr(request, "model", None) for request in gateway.requests] == ["mine", "other"]
    await api.close()


async def test_of_several_models_one_must_be_named(api: ClientApi, gateway: FakeGateway) -> None:
    gateway.models.append(pb.Model(id="gemma-9b"))
    with pytest.raises(InvalidRequest, match="gemma, gemma-9b") as caught:
        await api.chat([Message("user", "Hi")])
    assert caught.value.param == "model"


async def test_a_gateway_without_models_is_unavailable(api: ClientApi, gateway: FakeGateway) -> None:
    gateway.models.clear()
    with pytest.raises(Unavailable, match="no model"):
        await api.generate("x")


async def test_models_tells_names_contexts_revisions_and_precisions(api: ClientApi) -> None:
    expected = Model("gemma", 128, "ab", dtype="bfloat16", quantization="int8", kv_dtype="float8_e4m3")
    assert await api.models() == (expected,)


async def test_tokens_are_counted_of_text_and_of_conversations(api: ClientApi, gateway: FakeGateway) -> None:
    assert await api.count_tokens("four") == 4
    assert await api.count_tokens([Message("user", "three")]) == 5
    text, conversation = gateway.requests
    assert isinstance(text, pb.CountTokensRequest)
    assert isinstance(conversation, pb.CountTokensRequest)
    assert (text.prompt, len(text.messages)) == ("four", 0)
    assert (conversation.prompt, len(conversation.messages)) == ("", 1)


async def test_logprobs_keep_the_exact_bytes_of_a_token(api: ClientApi, gateway: FakeGateway) -> None:
    token = pb.TokenLogprob(token_id=217, text="\ufffd", bytes=b"\xf0", logprob=-0.5)
    gateway.script.append(Say(logprobs=(pb.PositionLogprobs(chosen=token, top=[token]),)))
    answer = await api.generate("x", logprobs=1)
    expected = TokenLogprob(token_id=217, text="\ufffd", data=b"\xf0", logprob=-0.5)
    assert answer.logprobs == (PositionLogprobs(chosen=expected, top=(expected,)),)


async def test_a_closed_client_says_so(api: ClientApi) -> None:
    await api.models()
    await api.close()
    with pytest.raises(RuntimeError, match="this client is closed"):
        await api.generate("x")
    with pytest.raises(RuntimeError, match="this client is closed"):
        await read_all(api.generate_stream("x"))


async def test_closing_ends_a_call_that_waits(api: ClientApi, gateway: FakeGateway) -> None:
    gateway.script.append(Say(delay_s=1.0))
    call = asyncio.create_task(api.generate("x", model="m"))
    while not gateway.requests:  # noqa: ASYNC110  # the gateway is in another thread
        await asyncio.sleep(0.01)
    await api.close()
    with pytest.raises(Unavailable):
        await call


async def test_an_answer_larger_than_grpcs_default_limit_arrives(api: ClientApi, gateway: FakeGateway) -> None:
    gateway.script.append(Say(pieces=("x" * 5_000_000,)))
    assert len((await api.generate("x")).text) == 5_000_000
