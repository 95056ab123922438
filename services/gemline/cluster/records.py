"""What a worker says of itself in Redis, and what everybody else reads. Plain data."""

import json
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Self


class Role(Enum):
    """What a worker does."""

    TOKENIZATION = "tokenization"
    PREFILL = "prefill"
    DECODE = "decode"


class State(Enum):
    """Whether a worker takes new work."""

    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The model a worker serves, as far as a gateway needs to know it."""

    model_id: str  # the served name
    revision: str  # SHA-256, hex, of the checkpoint's config and tensor headers
    context_length: int  # tokens, prompt and answer together
    vocab_size: int
    stop_token_ids: tuple[int, ...]  # end the answer unless ignored
    tokenizer_sha256: str  # of tokenizer.json, hex
    dtype: str = ""  # of activations; empty where nothing is computed
    quantization: str = ""  # of the weights; empty where there are none
    kv_dtype: str = ""  # of keys and values; empty where there are none
    window: int = 0  # positions that local layers keep; 0, here and below: not said
    global_token_bytes: int = 0  # keys and values of a token, in all global layers
    local_token_bytes: int = 0  # in all local layers


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """One life of one worker: `epoch` is new with every registration and never used again."""

    worker_id: str
    role: Role
    address: str  # host:port of its gRPC server
    model: ModelCard
    epoch: int = 0
    state: State = State.READY
    num_running: int = 0
    num_waiting: int = 0
    pid: int = 0
    metrics_address: str = ""  # host:port of its /metrics
    release: str = ""  # which one of the platform it came with; requests are shared out among releases
    backend: str = ""  # what its engine computes with, for people to read; empty where nothing is computed

    def to_json(self) -> str:
        """One JSON object; `from_json` reads it back."""
        return json.dumps(asdict(self), default=lambda value: value.value, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The record that `to_json` wrote; fields of a newer version that this one does not know are left out."""
        known = cls.__dataclass_fields__
        fields: dict[str, Any] = {name: value for name, value in json.loads(text).items() if name in known}
        card = {name: value for name, value in fields["model"].items() if name in ModelCard.__dataclass_fields__}
        card["stop_token_ids"] = tuple(card["stop_token_ids"])
        state = State(fields.get("state", State.READY))
        fields |= {"role": Role(fields["role"]), "state": state, "model": ModelCard(**card)}
        return cls(**fields)
