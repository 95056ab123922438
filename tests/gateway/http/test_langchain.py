"""LangChain's ChatOpenAI works unchanged."""

from gateway.http.toy import CARD, KEY, Front, answer_text
from langchain_openai import ChatOpenAI
from pydantic import SecretStr


def model(front: Front) -> ChatOpenAI:
    return ChatOpenAI(
        model=CARD.model_id,
        base_url=f"{front.url}/v1",
        api_key=SecretStr(KEY),
        max_completion_tokens=5,
        max_retries=0,
        temperature=0.5,
    )


def test_a_chat_is_answered(front: Front) -> None:
    answer = model(front).invoke([("human", "hello")])
    assert answer.content == answer_text("hello", 5)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 5


async def test_a_stream_and_a_batch_are_answered(front: Front) -> None:
    # In one test: LangChain keeps its connections, and with them their event loop, for the life of the process.
    chat = model(front)
    chunks = [chunk async for chunk in chat.astream("hello")]
    assert "".join(str(chunk.content) for chunk in chunks) == answer_text("hello", 5)
    answers = await chat.abatch(["a", "b", "c"])
    assert [answer.content for answer in answers] == [answer_text(prompt, 5) for prompt in "abc"]
