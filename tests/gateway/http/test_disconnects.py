"""A client that leaves costs nothing from then on."""

import asyncio
from collections.abc import Callable

import httpx
import openai
import pytest
from gateway.http.toy import CARD, ToyCore
from starlette.requests import ClientDisconnect
from starlette.types import Message

from gemline.gateway.http.answering import AnswerResponse, Order
from gemline.gateway.http.connection import while_connected
from gemline.gateway.http.forms import COMPLETION
from gemline.gateway.requests import GenerationRequest, Prompt, SamplingOptions, Tenant

Soon = Callable[[Callable[[], bool]], None]
MODEL = CARD.model_id


def test_closing_a_stream_cancels_its_answer(client: openai.OpenAI, core: ToyCore, soon: Soon) -> None:
    stream = client.completions.create(model=MODEL, prompt="!hang in a stream", stream=True)
    next(iter(stream))
    answer = core.answer_to("!hang in a stream")
    assert not answer.cancelled
    stream.close()
    soon(lambda: answer.cancelled)


def test_closing_a_stream_cancels_all_of_n(client: openai.OpenAI, core: ToyCore, soon: Soon) -> None:
    stream = client.completions.create(model=MODEL, prompt="!hang in all", stream=True, n=3)
    next(iter(stream))
    answers = [answer for answer in core.answers if answer.prompt == b"!hang in all"]
    assert len(answers) == 3
    stream.close()
    soon(lambda: all(answer.cancelled for answer in answers))


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_before_the_first_piece_cancels(http: httpx.Client, core: ToyCore, soon: Soon, stream: bool) -> None:
    prompt = f"!silent {stream}"
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/completions", json={"model": MODEL, "prompt": prompt, "stream": stream}, timeout=0.2)
    soon(lambda: core.answer_to(prompt).cancelled)


async def test_cancelling_a_task_of_the_async_client_cancels(
    aclient: openai.AsyncOpenAI, core: ToyCore, soon: Soon
) -> None:
    task = asyncio.create_task(aclient.completions.create(model=MODEL, prompt="!hang in a task"))
    await asyncio.to_thread(soon, lambda: any(answer.prompt == b"!hang in a task" for answer in core.answers))
    task.cancel()
    await asyncio.to_thread(soon, lambda: core.answer_to("!hang in a task").cancelled)


def test_an_answer_that_was_read_to_its_end_is_not_cancelled(client: openai.OpenAI, core: ToyCore) -> None:
    for _ in client.completions.create(model=MODEL, prompt="to the end", max_tokens=3, stream=True):
        pass
    assert core.answer_to("to the end").ended
    assert not core.answer_to("to the end").cancelled


def an_order(core: ToyCore) -> AnswerResponse:
    request = GenerationRequest("req_1", MODEL, Prompt(text="x"), SamplingOptions(max_tokens=10))
    order = Order("req_1", MODEL, (request,), 1, "default", stream=True, with_usage=False, traceparent="")
    return AnswerResponse(core, Tenant("toy"), order, COMPLETION)


async def stay() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_slow_client_slows_its_own_answer_and_gets_all_of_it() -> None:
    core = ToyCore()
    sent: list[Message] = []

    async def send(message: Message) -> None:
        await asyncio.sleep(0.01)
        sent.append(message)

    await an_order(core)({"type": "http"}, stay, send)
    assert sent[-1]["body"].endswith(b"[DONE]\n\n")
    assert not sent[-1]["more_body"]
    assert core.answers[0].ended


async def test_stopping_the_server_cancels_the_answer() -> None:
    core = ToyCore()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    serving = asyncio.ensure_future(an_order(core)({"type": "http"}, stay, send))
    await asyncio.sleep(0.01)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert core.answers[0].cancelled


async def test_work_is_cancelled_when_its_client_leaves_and_its_result_kept_when_not() -> None:
    cancelled = asyncio.Event()

    async def work() -> int:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return 1

    async def quick() -> int:
        return 2

    async def leave() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        await while_connected(work(), leave)
    assert cancelled.is_set()
    assert await while_connected(quick(), stay) == 2
