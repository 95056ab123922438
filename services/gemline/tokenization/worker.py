"""The tokenization worker: loads a checkpoint's tokenizer and serves it. Knows no weights."""

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grpc.aio

from gemline.cluster.records import ModelCard, Role
from gemline.engine.checkpoint import revision
from gemline.engine.config import Gemma2Config
from gemline.errors import CheckpointError, Unavailable
from gemline.host import WorkerContext
from gemline.internal.v1.tokenization_pb2_grpc import add_TokenizationServicer_to_server
from gemline.signals import Signals
from gemline.telemetry import Telemetry
from gemline.text.chat import SystemPrompt
from gemline.text.tokenizer import FILE_NAME, Tokenizer, read_tokenizer_file
from gemline.tokenization.encoder import MAX_TEXT_BYTES, Encoder
from gemline.tokenization.servicer import Servicer


@dataclass(frozen=True, slots=True)
class TokenizationOptions:
    """What a tokenization worker serves and how."""

    model_dir: Path
    served_model_name: str
    system_prompt: SystemPrompt = "refuse"
    max_text_bytes: int = MAX_TEXT_BYTES


class TokenizationWorker:
    """A worker for `WorkerHost`. It keeps nothing between calls, so it serves whoever calls until it is stopped."""

    role = Role.TOKENIZATION
    backend = ""

    def __init__(self, options: TokenizationOptions) -> None:
        self._options = options
        self._epoch = 0
        self._served: _Served | None = None

    @property
    def card(self) -> ModelCard:
        """The model it serves. Raises Unavailable before `start`."""
        return self._started().card

    async def start(self, context: WorkerContext) -> None:
        """Reads tokenizer.json and config.json. Raises CheckpointError, which names the file."""
        loaded = await asyncio.to_thread(_load, self._options)
        encoder = Encoder(loaded.tokenizer, self._options.system_prompt, self._options.max_text_bytes)
        self._served = _Served(loaded.card, encoder, loaded.tokenizer_json, context.telemetry)

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the Tokenization service."""
        served = self._started()
        servicer = Servicer(served.encoder, served.tokenizer_json, lambda: self._epoch, served.telemetry)
        add_TokenizationServicer_to_server(servicer, server)

    def epoch_changed(self, epoch: int) -> None:
        """Calls that mean another life are refused from now on."""
        self._epoch = epoch

    def load(self) -> tuple[int, int]:
        """(num_running, num_waiting)."""
        return (self._served.encoder.num_running if self._served else 0, 0)

    async def signals(self) -> Signals:
        """Its load alone."""
        return Signals(num_running=self.load()[0])

    async def drain(self, timeout_s: float) -> None:
        """Waits for what is being encoded. Late callers are still served: cheaper than sending them elsewhere."""
        if self._served is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._served.encoder.wait_idle()

    async def stop(self) -> None:
        """Lets go of the tokenizer."""
        self._served = None

    def check_health(self) -> None:
        """Raises Unavailable when it is not started."""
        self._started()

    def _started(self) -> "_Served":
        if self._served is None:
            raise Unavailable("the tokenization worker is not started")
        return self._served


class _Loaded(NamedTuple):
    """What is read from the checkpoint's folder."""

    card: ModelCard
    tokenizer: Tokenizer
    tokenizer_json: bytes


class _Served(NamedTuple):
    """What there is between start and stop."""

    card: ModelCard
    encoder: Encoder
    tokenizer_json: bytes
    telemetry: Telemetry


def _load(options: TokenizationOptions) -> _Loaded:
    config = Gemma2Config.load(options.model_dir)
    tokenizer_json = read_tokenizer_file(options.model_dir)
    tokenizer = Tokenizer.load(tokenizer_json)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{options.model_dir / FILE_NAME} has token ids up to {tokenizer.vocab_size - 1}, but vocab_size in "
            f"config.json is {config.vocab_size}"
        )
    card = ModelCard(
        model_id=options.served_model_name,
        revision=revision(options.model_dir),
        context_length=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        stop_token_ids=config.stop_token_ids,
        tokenizer_sha256=tokenizer.sha256,
    )
    return _Loaded(card, tokenizer, tokenizer_json)
