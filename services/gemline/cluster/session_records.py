"""What is known of a session, as Redis keeps it and as everybody else reads it. Plain data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True, slots=True)
class Residence:
    """Where a session's keys and values were when its last turn ended; all empty before the first."""

    worker_id: str = ""
    epoch: int = 0
    tip: str = ""  # hash of the last full block, hex
    window_start: int = 0  # the first position that local layers still read
    num_bytes: int = 0  # of keys and values

    def to_fields(self) -> dict[str, str]:
        """As Redis has it."""
        return {
            "worker_id": self.worker_id,
            "epoch": str(self.epoch),
            "tip": self.tip,
            "window_start": str(self.window_start),
            "kv_bytes": str(self.num_bytes),
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> Self:
        """What `to_fields` gave."""
        return cls(
            fields.get("worker_id", ""),
            int(fields.get("epoch", 0)),
            fields.get("tip", ""),
            int(fields.get("window_start", 0)),
            int(fields.get("kv_bytes", 0)),
        )


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One session without its token ids. Times are Unix times by Redis's clock."""

    session_id: str
    model_id: str
    tokenizer_sha256: str
    ttl_s: float
    made_us: int
    updated_us: int
    ends_s: float
    num_turns: int = 0
    num_tokens: int = 0
    residence: Residence = Residence()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_fields(cls, session_id: str, fields: Mapping[str, str]) -> Self:
        """Of the hash in Redis; fields of a newer version that this one does not know are left out."""
        return cls(
            session_id=session_id,
            model_id=fields["model_id"],
            tokenizer_sha256=fields["tokenizer_sha256"],
            ttl_s=int(fields["ttl_ms"]) / 1000,
            made_us=int(fields["made_us"]),
            updated_us=int(fields["updated_us"]),
            ends_s=int(fields["ends_ms"]) / 1000,
            num_turns=int(fields["num_turns"]),
            num_tokens=int(fields.get("num_tokens", 0)),
            residence=Residence.from_fields(fields),
            metadata=json.loads(fields.get("metadata", "{}")),
        )


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn that was begun: the session as it is before it, and the lease that keeps others out until it ends."""

    tenant_id: str
    record: SessionRecord
    token_ids: Sequence[int]
    lease: str
    tail: bytes  # the last bytes of the ids as they are kept: what the next segment is bound to


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Some sessions of one tenant, the newest first."""

    records: tuple[SessionRecord, ...]
    after: str  # asks for the next page; empty on the last
