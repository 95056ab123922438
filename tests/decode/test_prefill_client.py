from dataclasses import replace

import pytest
from support.hand_worker import CARD
from support.workers import becomes_true

from gemline.cluster.records import Role, WorkerRecord
from gemline.decode.prefill_client import PrefillClient
from gemline.errors import Unavailable
from gemline.internal.v1.prefill_pb2 import PrefillRequest
from gemline.transfer.transports import Transport

BOTH = frozenset({Transport.SHM, Transport.SOCKET})


async def test_a_transport_that_could_not_be_had_is_avoided_for_a_while_and_only_there() -> None:
    here = WorkerRecord("prefill-0", Role.PREFILL, "127.0.0.1:1", CARD, epoch=1)
    other = replace(here, worker_id="prefill-1")
    client = PrefillClient(lambda: (here, other), CARD, transports=BOTH, avoid_s=0.5)
    for worker in (here, other):
        with pytest.raises(Unavailable):
            async with client.call(worker, PrefillRequest(), ""):  # nobody listens there
                pass

    client.avoid(here, [Transport.SHM])

    assert client.transports(here) == {Transport.SOCKET}
    assert client.transports(other) == BOTH
    assert await becomes_true(lambda: client.transports(here) == BOTH)
    await client.close()
