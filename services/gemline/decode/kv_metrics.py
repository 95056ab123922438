"""What came from prefill workers, how, and for how long somebody waited for nothing else. For metrics and traces."""

import time
from typing import NamedTuple

from gemline.internal.v1.prefill_pb2 import PrefillEnd
from gemline.telemetry import Span, Telemetry
from gemline.transfer.fetch import Fetch


class Transferred(NamedTuple):
    """One prefill's keys and values, all imported."""

    end: PrefillEnd
    transport: str
    num_bytes: int
    held_bytes: int  # the whole prompt's, of all layers
    exposed_s: float  # from its last chunk's computation until now, without the end frame's way through the network


def transferred(fetch: Fetch, end: PrefillEnd, held_bytes: int) -> Transferred:
    """To be called when the last frame has been imported. Each worker has measured by its own clock."""
    exposed_s = end.since_computed_s + time.monotonic() - fetch.ended_s
    return Transferred(end, fetch.transport.value, end.num_bytes, held_bytes, exposed_s)


class KvMetrics:
    """Of one decode worker."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._received = telemetry.meter.create_counter(
            "gemline_kv_received", unit="By", description="Keys and values received from prefill workers, by transport"
        )
        self._exposed = telemetry.latency(
            "gemline_kv_exposed", "From a prompt's last computed chunk until its keys and values were all imported"
        )

    def received(self, fetch: Fetch, num_bytes: int) -> None:
        """So much came, whatever became of it."""
        self._received.add(num_bytes, {"transport": fetch.transport.value})

    def imported(self, done: Transferred, span: Span | None) -> None:
        """All of a prompt is there."""
        self._exposed.record(done.exposed_s, {"transport": done.transport})
        if span is not None:
            span.set("gemline.kv_transport", done.transport)
            span.set("gemline.kv_bytes", done.num_bytes)
            span.set("gemline.kv_held_bytes", done.held_bytes)
            span.set("gemline.kv_exposed_s", done.exposed_s)
            span.set("gemline.prefill_s", done.end.prefill_s)
