"""The Tokenization service: converts, calls, converts. Decides nothing."""

from collections.abc import AsyncIterator, Callable

import grpc.aio

from gemline.errors import StaleEpoch
from gemline.internal.v1.tokenization_pb2 import (
    EncodeRequest,
    EncodeResponse,
    FetchTokenizerRequest,
    FetchTokenizerResponse,
)
from gemline.internal.v1.tokenization_pb2_grpc import TokenizationServicer
from gemline.telemetry import Telemetry
from gemline.text.chat import Turn
from gemline.tokenization.encoder import Encoder

_PIECE_BYTES = 2**20

EncodeContext = grpc.aio.ServicerContext[EncodeRequest, EncodeResponse]
FetchContext = grpc.aio.ServicerContext[FetchTokenizerRequest, FetchTokenizerResponse]


class Servicer(TokenizationServicer):
    """`tokenizer_json` are the file's bytes; `epoch` gives the worker's present life: a call for another is refused."""

    def __init__(self, encoder: Encoder, tokenizer_json: bytes, epoch: Callable[[], int], telemetry: Telemetry) -> None:
        self._encoder = encoder
        self._tokenizer_json = memoryview(tokenizer_json)
        self._epoch = epoch
        self._telemetry = telemetry
        self._num_tokens = telemetry.meter.create_counter(
            "gemline_encoded_tokens", description="tokens of prompts and conversations"
        )

    async def Encode(self, request: EncodeRequest, context: EncodeContext) -> EncodeResponse:
        """The ids of the text, or of the turns when there are any."""
        self._check_epoch(request.epoch)
        with self._telemetry.span("tokenize", request.trace_context) as span:
            if request.turns:
                turns = [Turn(turn.role, turn.content) for turn in request.turns]
                token_ids = await self._encoder.encode_chat(turns, continues=request.continues)
            else:
                token_ids = await self._encoder.encode_prompt(request.text)
            span.set("gemline.num_tokens", len(token_ids))
        self._num_tokens.add(len(token_ids))
        return EncodeResponse(token_ids=token_ids)

    async def FetchTokenizer(
        self, request: FetchTokenizerRequest, context: FetchContext
    ) -> AsyncIterator[FetchTokenizerResponse]:
        """tokenizer.json, piece by piece."""
        self._check_epoch(request.epoch)
        for start in range(0, len(self._tokenizer_json), _PIECE_BYTES):
            yield FetchTokenizerResponse(data=bytes(self._tokenizer_json[start : start + _PIECE_BYTES]))

    def _check_epoch(self, meant: int) -> None:
        if meant != (epoch := self._epoch()):
            raise StaleEpoch(f"epoch {meant} was meant, this worker has epoch {epoch}")
