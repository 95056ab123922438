"""Calls to tokenization workers: any of them will do, so a call that one of them fails goes to the next."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import grpc

from gemline.cluster.records import ModelCard, Role, State, WorkerRecord
from gemline.cluster.workers import WorkersView
from gemline.errors import DeadlineExceeded, StaleEpoch, Unavailable
from gemline.gateway.tasks import is_task_canceled
from gemline.internal.v1.tokenization_pb2_grpc import TokenizationStub
from gemline.rpc.options import OpenChannel
from gemline.rpc.status import from_rpc_error

if TYPE_CHECKING:  # the stub of an asyncio channel has no name but in the type stubs
    from gemline.internal.v1.tokenization_pb2_grpc import TokenizationAsyncStub

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 4
PAUSE_S = 0.05  # before a worker that failed is tried again
CLOSE_GRACE_S = 5.0  # for the calls that still run on a channel when its worker leaves

_T = TypeVar("_T")
Call = Callable[["TokenizationAsyncStub", WorkerRecord], Awaitable[_T]]


class TokenizationWorkers:
    """Holds one channel to each worker's address. Belongs to one event loop."""

    def __init__(self, view: WorkersView, open_channel: OpenChannel) -> None:
        self._view = view
        self._open_channel = open_channel
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._turn = itertools.count()
        self._closing: set[asyncio.Task[None]] = set()

    def follow(self) -> None:
        """Close the channels to workers that have gone; called after a change of the view."""
        current = {record.address for record in self._view.workers(Role.TOKENIZATION)}
        for address in self._channels.keys() - current:
            self._close(self._channels.pop(address))

    async def stop(self) -> None:
        """Close every channel."""
        while self._channels:
            self._close(self._channels.popitem()[1])
        await asyncio.gather(*self._closing, return_exceptions=True)

    def can_serve(self, card: ModelCard) -> bool:
        """Whether there is a worker with this very tokenizer."""
        return bool(self._of(card))

    async def call(self, card: ModelCard, call: Call[_T]) -> _T:
        """The answer of a worker that has the model's tokenizer.

        Raises what the worker says of the request itself, and Unavailable when no worker answers.
        """
        tried: set[str] = set()
        for _ in range(MAX_ATTEMPTS):
            record = self._next(card, tried)
            if record is None:
                break
            if record.worker_id in tried:
                await asyncio.sleep(PAUSE_S)
            tried.add(record.worker_id)
            try:
                return await self._ask(record, call)
            except (Unavailable, DeadlineExceeded, StaleEpoch) as error:
                log.warning("tokenization worker %s: %s", record.worker_id, error)
        raise Unavailable(f"no tokenization worker answers for model {card.model_id} now; try again")

    async def _ask(self, record: WorkerRecord, call: Call[_T]) -> _T:
        channel = self._channels.get(record.address)
        if channel is None:
            channel = self._channels[record.address] = self._open_channel(record.address)
        try:
            return await call(TokenizationStub(channel), record)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and self._channels.get(record.address) is channel:
                self._close(self._channels.pop(record.address))  # the next call tries with the certificate of then
            raise from_rpc_error(error, peer="the tokenization worker") from error
        except asyncio.CancelledError:
            if is_task_canceled():
                raise
            raise Unavailable("the tokenization worker left during the call") from None

    def _next(self, card: ModelCard, tried: set[str]) -> WorkerRecord | None:
        """The worker whose turn it is: one that was not tried, and takes work, if there is one."""
        records = self._of(card)
        start = next(self._turn)
        in_turn = [records[(start + i) % len(records)] for i in range(len(records))]
        return min(
            in_turn, key=lambda record: (record.worker_id in tried, record.state is not State.READY), default=None
        )

    def _of(self, card: ModelCard) -> list[WorkerRecord]:
        records = self._view.workers(Role.TOKENIZATION, card.model_id)
        return [record for record in records if record.model.tokenizer_sha256 == card.tokenizer_sha256]

    def _close(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.create_task(channel.close(CLOSE_GRACE_S))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
