"""The HTTP front over a toy core, served by uvicorn on a free port, and the clients people use."""

import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import openai
import pytest
import uvicorn
from gateway.http.toy import BODY_LIMIT_BYTES, KEY, Front, ToyCore

from gemline.gateway.http import create_app
from gemline.gateway.settings import GatewaySettings


@pytest.fixture(scope="session")
def front() -> Iterator[Front]:
    core = ToyCore()
    app = create_app(core, GatewaySettings(body_limit_bytes=BODY_LIMIT_BYTES))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
        # In a thread of its own, so that the clients' blocking calls do not stop it.
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield Front(f"http://127.0.0.1:{listener.getsockname()[1]}", core)
        server.should_exit = True
        thread.join()


@pytest.fixture
def core(front: Front) -> ToyCore:
    return front.core


@pytest.fixture
def http(front: Front) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=front.url, headers={"authorization": f"Bearer {KEY}"}) as client:
        yield client


@pytest.fixture
def client(front: Front) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
async def aclient(front: Front) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def soon() -> Callable[[Callable[[], bool]], None]:
    """Waits until something is true; fails after two seconds."""

    def wait(condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 2
        while not condition():
            assert time.monotonic() < until, "it did not happen"
            time.sleep(0.005)

    return wait
