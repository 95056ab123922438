"""What cannot be sent is refused before anything is sent, naming the field."""

from typing import Any

import pytest

from gemline.client import Client, Message
from gemline.errors import InvalidRequest
from gemline.v1 import inference_pb2 as pb


@pytest.fixture
def client() -> Client:
    return Client("127.0.0.1:1", model="m")  # nobody listens: a request that were sent would be Unavailable


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", "many"),
        ("temperature", "hot"),
        ("top_k", 2**32),
        ("seed", -1),
        ("seed", 2**64),
        ("logit_bias", {"a": 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("stop", [1]),
        ("stop", 1),
        ("stop_token_ids", [-1]),
        ("stop", ["\ud800"]),
    ],
)
def test_a_value_that_does_not_fit_its_field_is_refused_by_name(client: Client, option: str, value: Any) -> None:
    options: Any = {option: value}
    with pytest.raises(InvalidRequest, match=option) as caught:
        client.generate("x", **options)
    assert caught.value.param == option


def test_a_misspelt_option_is_a_type_error_as_for_any_function(client: Client) -> None:
    options: Any = {"temprature": 1}
    with pytest.raises(TypeError, match="temprature"):
        client.generate("x", **options)


def test_one_stop_string_is_a_list_of_one() -> None:
    from gemline.client.requests import sampling_options

    assert sampling_options({"stop": "end"}) == pb.SamplingOptions(stop=["end"])


@pytest.mark.parametrize(
    "messages",
    [
        ["Hi"],
        "Hi",
        [{"role": "user"}],
        [{"role": "user", "content": "Hi", "name": "me"}],
        [Message("model", "Hi")],
        [{"role": "user", "content": None}],
        [Message("user", "\ud800")],
        [None],
    ],
)
def test_what_is_no_conversation_is_refused(client: Client, messages: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"messages\[0\]") as caught:
        client.chat(messages)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("prompt", [None, b"bytes", 3, "\udfff"])
def test_a_prompt_that_is_no_text_is_refused(client: Client, prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match="prompt") as caught:
        client.generate(prompt)
    assert caught.value.param == "prompt"


def test_a_stream_is_refused_where_it_is_asked_for(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="max_tokens"):
        client.chat_stream([Message("user", "Hi")], max_tokens=-1)
