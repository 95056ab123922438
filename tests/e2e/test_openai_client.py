"""The real openai client and LangChain against the whole platform, prefill apart from decode and not."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import SecretStr
from support.stack import Running

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shared-stacks")]

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello, who are you?"}]


@pytest.fixture(params=["split_stack", "colocated_stack"])
def stack(request: pytest.FixtureRequest) -> Running:
    running: Running = request.getfixturevalue(request.param)
    return running


def test_a_chat_is_answered_with_usage(stack: Running) -> None:
    answer = stack.openai().chat.completions.create(model=stack.model, messages=HELLO, max_tokens=9, temperature=0)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 9
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_chat_is_the_same_text_as_a_whole_one(stack: Running) -> None:
    client = stack.openai()
    whole = client.chat.completions.create(model=stack.model, messages=HELLO, max_tokens=24, temperature=0)
    stream = client.chat.completions.create(
        model=stack.model,
        messages=HELLO,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    usage = chunks[-1].usage
    assert usage is not None and whole.usage is not None  # what was cached may differ
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)


def test_both_topologies_give_the_same_tokens(split_stack: Running, colocated_stack: Running) -> None:
    def ask(stack: Running, temperature: float) -> list[str]:
        answer = stack.openai().completions.create(
            model=stack.model,
            prompt="Once upon a time " * 60,
            max_tokens=24,
            temperature=temperature,
            seed=7,
            logprobs=0,
        )
        assert answer.choices[0].logprobs is not None
        return answer.choices[0].logprobs.tokens or []

    for temperature in (0.0, 1.0):
        assert ask(split_stack, temperature) == ask(colocated_stack, temperature)


def test_concurrent_requests_get_the_text_each_gets_alone(stack: Running) -> None:
    client = stack.openai()

    def ask(number: int) -> str:
        answer = client.completions.create(
            model=stack.model, prompt=f"Number {number}: " + "word " * (number * 17), max_tokens=12, temperature=0
        )
        return answer.choices[0].text

    alone = [ask(number) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == alone


def test_a_seed_repeats_the_answer_and_its_absence_does_not(stack: Running) -> None:
    client = stack.openai()

    def ask(seed: int | None) -> str | None:
        answer = client.chat.completions.create(model=stack.model, messages=HELLO, max_tokens=24, seed=seed)
        return answer.choices[0].message.content

    assert ask(3) == ask(3)
    assert ask(None) != ask(None)


def test_a_stop_string_ends_the_answer_before_it(stack: Running) -> None:
    client = stack.openai()
    whole = client.chat.completions.create(model=stack.model, messages=HELLO, max_tokens=30, temperature=0)
    text = whole.choices[0].message.content or ""
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    cut = client.chat.completions.create(model=stack.model, messages=HELLO, max_tokens=30, temperature=0, stop=[stop])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_logprobs_say_how_likely_each_token_was(stack: Running) -> None:
    answer = stack.openai().chat.completions.create(
        model=stack.model, messages=HELLO, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    positions = answer.choices[0].logprobs.content
    assert positions is not None
    assert positions
    for position in positions:
        assert position.logprob <= 0
        assert position.top_logprobs[0].token == position.token  # greedy takes the likeliest
        assert len(position.top_logprobs) == 3


def test_a_stream_that_is_closed_early_leaves_the_worker_serving(stack: Running) -> None:
    client = stack.openai()
    with client.chat.completions.create(model=stack.model, messages=HELLO, max_tokens=1500, stream=True) as stream:
        next(iter(stream))
    assert client.chat.completions.create(model=stack.model, messages=HELLO, max_tokens=2).choices


def test_an_unknown_model_is_a_404(stack: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        stack.openai().chat.completions.create(model="no-such-model", messages=HELLO)


@pytest.mark.parametrize("key", ["", "gk_wrong_key"])
def test_a_missing_or_wrong_key_is_a_401(stack: Running, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = httpx.post(f"{stack.base_url}/chat/completions", json={}, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_prompt_over_the_context_names_both_numbers(stack: Running) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        stack.openai().completions.create(model=stack.model, prompt=[5] * 100_000)
    assert caught.value.code == "context_length_exceeded"
    assert "100001 tokens" in str(caught.value)  # <bos> is put first
    assert "context of 2048 tokens" in str(caught.value)


def test_max_tokens_beyond_the_context_names_both_numbers(stack: Running) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        stack.openai().chat.completions.create(model=stack.model, messages=HELLO, max_tokens=1_000_000)
    assert caught.value.code == "context_length_exceeded"
    assert "1000000" in str(caught.value)


def test_a_system_message_is_refused_with_the_reason(stack: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="system"):
        stack.openai().chat.completions.create(
            model=stack.model, messages=[{"role": "system", "content": "Be brief."}, *HELLO]
        )


def test_langchain_works_unchanged(stack: Running) -> None:
    chat = ChatOpenAI(
        base_url=stack.base_url,
        api_key=SecretStr(stack.ready["api_key"]),
        model=stack.model,
        max_completion_tokens=8,
        temperature=0,
    )
    whole = chat.invoke("Hello").content
    assert "".join(str(piece.content) for piece in chat.stream("Hello")) == whole
