"""The Prefill service: a prompt in, KV frames out. Checks who was meant; knows no engine step."""

from __future__ import annotations  # grpc's generic classes take their parameters in the type stubs alone

from typing import Protocol

import grpc
import grpc.aio

from gemline.engine.requests import EngineRequest
from gemline.errors import InvalidRequest, StaleEpoch
from gemline.internal.v1.prefill_pb2 import KvLayout, PrefillRequest
from gemline.prefill.calls import Order
from gemline.rpc.convert import sampling_from_proto
from gemline.transfer.outlet import Write

SERVICE = "gemline.internal.v1.Prefill"

PrefillContext = grpc.aio.ServicerContext[PrefillRequest, bytes]


class Prefills(Protocol):
    """What does the work."""

    @property
    def epoch(self) -> int:
        """The worker's present life."""

    @property
    def layout(self) -> KvLayout:
        """Of the keys and values it sends."""

    def new_seq_id(self) -> int:
        """A number for one more sequence."""

    async def run(self, order: Order, write: Write) -> None:
        """Prefills, sends what was ordered, and writes the end. Leaving it, by an error or by being cancelled too,
        frees the blocks.
        """


class Servicer:
    """Frames are bytes of our own making, so the method is registered by hand and without a serializer."""

    def __init__(self, prefills: Prefills) -> None:
        self._prefills = prefills

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service."""
        method: grpc.RpcMethodHandler[PrefillRequest, bytes] = grpc.unary_stream_rpc_method_handler(
            self.prefill, request_deserializer=PrefillRequest.FromString, response_serializer=None
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Prefill": method}),))

    async def prefill(self, message: PrefillRequest, context: PrefillContext) -> None:
        """One call."""
        self._check(message)
        metadata = dict(context.invocation_metadata() or ())
        request = EngineRequest(
            seq_id=self._prefills.new_seq_id(),
            token_ids=tuple(message.token_ids),
            num_prompt_tokens=message.num_prompt_tokens,
            params=sampling_from_proto(message.sampling),
            hold=True,
            cache_salt=message.cache_salt,
            num_public_tokens=message.num_public_tokens,
        )
        order = Order(
            request=request,
            num_held=message.num_held_tokens,
            heads=range(message.heads.start, message.heads.stop) if message.HasField("heads") else None,
            wire_dtype=message.wire_dtype,
            offer=message.offer,
            request_id=message.request_id,
            traceparent=str(metadata.get("traceparent", "")),
        )
        await self._prefills.run(order, context.write)

    def _check(self, message: PrefillRequest) -> None:
        epoch, layout = self._prefills.epoch, self._prefills.layout
        if message.epoch != epoch:
            raise StaleEpoch(f"epoch {message.epoch} was meant, this worker has epoch {epoch}")
        if message.layout != layout:
            raise StaleEpoch(f"layout {_describe(message.layout)} was meant, this worker has {_describe(layout)}")
        if message.num_held_tokens >= len(message.token_ids):
            raise InvalidRequest(
                f"num_held_tokens is {message.num_held_tokens} of {len(message.token_ids)} tokens: nothing is left"
            )


def _describe(layout: KvLayout) -> str:
    return f"{layout.model_revision[:12]}/{layout.dtype}/{layout.quantization}/{layout.kv_dtype}"
