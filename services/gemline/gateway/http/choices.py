"""The answers to one HTTP request (its prompts, times n) as one numbered stream. Knows no JSON."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from gemline.gateway.http.interface import AnswerStream, Generator
from gemline.gateway.requests import GenerationRequest, Piece, Tenant


class Numbered(NamedTuple):
    """A piece of the answer with that index."""

    choice: int
    piece: Piece


class Choices:
    """The pieces of all answers, each in its own order. `aclose` cancels what has not ended."""

    def __init__(self, answers: Sequence[AnswerStream]) -> None:
        self._answers = answers
        self._merged = _merged(answers) if len(answers) > 1 else None

    async def next(self) -> Numbered | None:
        """Whichever comes first; None when all have ended."""
        try:
            if self._merged is not None:
                return await anext(self._merged)
            return Numbered(0, await anext(self._answers[0]))
        except StopAsyncIteration:
            return None

    async def aclose(self) -> None:
        """Cancel every answer that has not ended."""
        for answer in self._answers:
            await answer.aclose()
        if self._merged is not None:
            await self._merged.aclose()


async def open_choices(
    generator: Generator, tenant: Tenant, requests: Sequence[GenerationRequest], *, traceparent: str = ""
) -> Choices:
    """Start all answers at once; when one is refused the others are cancelled and its error is raised."""
    if len(requests) == 1:
        return Choices([await generator.generate(tenant, requests[0], traceparent=traceparent)])
    starting = [
        asyncio.ensure_future(generator.generate(tenant, request, traceparent=traceparent)) for request in requests
    ]
    try:
        return Choices(await asyncio.gather(*starting))
    except BaseException:
        await _abandon(starting)
        raise


async def _abandon(starting: Sequence["asyncio.Future[AnswerStream]"]) -> None:
    for start in starting:
        start.cancel()
    for started in await asyncio.gather(*starting, return_exceptions=True):
        if not isinstance(started, BaseException):
            await started.aclose()


async def _merged(answers: Sequence[AnswerStream]) -> AsyncGenerator[Numbered, None]:
    # A short queue: a client that reads slowly slows every answer instead of filling our memory.
    queue: asyncio.Queue[Numbered | Exception | None] = asyncio.Queue(maxsize=len(answers))

    async def feed(index: int, answer: AnswerStream) -> None:
        try:
            async for piece in answer:
                await queue.put(Numbered(index, piece))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    feeding = [asyncio.ensure_future(feed(index, answer)) for index, answer in enumerate(answers)]
    num_open = len(answers)
    try:
        while num_open:
            match await queue.get():
                case None:
                    num_open -= 1
                case Numbered() as numbered:
                    yield numbered
                case error:
                    raise error
    finally:
        for feeder in feeding:
            feeder.cancel()
        await asyncio.gather(*feeding, return_exceptions=True)
