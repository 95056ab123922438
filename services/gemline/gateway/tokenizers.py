"""The tokenizers of the models that are served, fetched from tokenization workers: a gateway has no model files."""

import asyncio
import hashlib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gemline.cluster.records import ModelCard, WorkerRecord
from gemline.errors import GemlineError, InternalError, Unavailable
from gemline.gateway.tokenization import TokenizationWorkers
from gemline.internal.v1.tokenization_pb2 import FetchTokenizerRequest
from gemline.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # it has no name but in the type stubs
    from gemline.internal.v1.tokenization_pb2_grpc import TokenizationAsyncStub

log = logging.getLogger(__name__)

MAX_BYTES = 256 * 2**20
FETCH_TIMEOUT_S = 60.0
RETRY_S = 1.0  # no request may ever come that would try again: whoever sends them waits until this gateway is ready


class Tokenizers:
    """Each is fetched and loaded once, by its SHA-256, however many requests wait for it."""

    def __init__(self, workers: TokenizationWorkers) -> None:
        self._workers = workers
        self._loading: dict[str, asyncio.Task[Tokenizer]] = {}
        self._needed: dict[str, ModelCard] = {}

    async def get(self, card: ModelCard) -> Tokenizer:
        """The model's tokenizer; raises Unavailable when no tokenization worker answers."""
        task = self._load_once(card)
        if not task.done():
            await asyncio.wait([task])  # one waiter that leaves does not take the tokenizer from the others
        if task.cancelled():
            raise Unavailable("the gateway is shutting down; try again")
        return task.result()

    def follow(self, cards: Iterable[ModelCard]) -> None:
        """Load what these models need, so that no request has to wait, and forget the rest."""
        self._needed = {card.tokenizer_sha256: card for card in cards}
        for sha256 in self._loading.keys() - self._needed.keys():
            if self._loading[sha256].done():
                del self._loading[sha256]
        self._load_needed()

    def has(self, card: ModelCard) -> bool:
        """Whether the model's tokenizer is loaded."""
        task = self._loading.get(card.tokenizer_sha256)
        return task is not None and task.done() and not task.cancelled() and task.exception() is None

    def stop(self) -> None:
        """Fetch no more."""
        self._needed = {}
        for task in self._loading.values():
            task.cancel()

    def _load_needed(self) -> None:
        for card in self._needed.values():
            if self._workers.can_serve(card):
                self._load_once(card)

    def _load_once(self, card: ModelCard) -> asyncio.Task[Tokenizer]:
        task = self._loading.get(card.tokenizer_sha256)
        if task is None:
            task = asyncio.create_task(self._load(card), name=f"tokenizer {card.tokenizer_sha256[:12]}")
            self._loading[card.tokenizer_sha256] = task
            task.add_done_callback(lambda done: self._forget_failure(card, done))
        return task

    def _forget_failure(self, card: ModelCard, task: asyncio.Task[Tokenizer]) -> None:
        """A later request tries again, and so do we."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._loading.get(card.tokenizer_sha256) is task:
            del self._loading[card.tokenizer_sha256]
        log.warning("the tokenizer of model %s was not loaded: %s", card.model_id, error)
        asyncio.get_running_loop().call_later(RETRY_S, self._load_needed)

    async def _load(self, card: ModelCard) -> Tokenizer:
        content = await self._workers.call(card, _fetch)
        if hashlib.sha256(content).hexdigest() != card.tokenizer_sha256:
            raise InternalError("the model's tokenizer does not have the checksum that was announced")
        try:
            return await asyncio.to_thread(Tokenizer.load, content)
        except GemlineError as error:
            raise InternalError("the model's tokenizer cannot be loaded") from error


async def _fetch(stub: "TokenizationAsyncStub", record: WorkerRecord) -> bytes:
    content = bytearray()
    async for response in stub.FetchTokenizer(FetchTokenizerRequest(epoch=record.epoch), timeout=FETCH_TIMEOUT_S):
        content += response.data
        if len(content) > MAX_BYTES:
            raise InternalError(f"the model's tokenizer is over {MAX_BYTES} bytes")
    return bytes(content)
