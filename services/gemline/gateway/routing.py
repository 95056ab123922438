"""Which decode worker takes a request. A pure function over what is known of the workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32


@dataclass(frozen=True, slots=True)
class Candidate:
    """One worker that could take the request, and what is known of its load."""

    worker_id: str
    num_reported: int  # sequences running and waiting, as the worker last said
    num_submitted: int  # by this gateway, since the worker said so
    num_in_flight: int  # this gateway's own on that worker

    @property
    def load(self) -> int:
        """Sequences that are there by now: what we sent since the report counts, or a burst would go to one worker."""
        return max(self.num_in_flight, self.num_reported + self.num_submitted)


def choose(candidates: Sequence[Candidate], request_id: str) -> Candidate | None:
    """The least loaded worker; equals are told apart by the request, so that several gateways spread alike."""
    return min(candidates, key=lambda candidate: (candidate.load, _rank(candidate.worker_id, request_id)), default=None)


def _rank(worker_id: str, request_id: str) -> int:
    return crc32(f"{worker_id}/{request_id}".encode())
