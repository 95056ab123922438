"""Where requests wait: whose turn it is, who is refused, who leaves; no turn is lost."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.cluster.access import BANDS, Band
from gemline.errors import DeadlineExceeded, Overloaded
from gemline.gateway import fair_queue
from gemline.gateway.fair_queue import Asking, FairQueue, Ticket


class Worker:
    """One with so many places, of which the last is for tenants that have nothing running."""

    def __init__(self, num_places: int, num_kept: int = 0) -> None:
        self.num_places, self.num_kept, self.num_running = num_places, num_kept, 0
        self.queue = FairQueue(self.has_room)
        self.order: list[str] = []

    def has_room(self, asking: Asking, is_first: bool) -> bool:
        return self.num_running < self.num_places - (0 if is_first else self.num_kept)

    async def ask(
        self, tenant: str, num_tokens: int = 10, band: Band = "default", timeout_s: float | None = None
    ) -> Ticket:
        ticket = await self.queue.admit(Asking(tenant, "m", num_tokens, 1.0, band, timeout_s))
        self.order.append(tenant)
        self.num_running += 1
        ticket.sent()
        return ticket

    def end(self, ticket: Ticket) -> None:
        self.num_running -= 1
        ticket.end()

    async def run(self, tenant: str, num_tokens: int = 10, band: Band = "default") -> None:
        ticket = await self.ask(tenant, num_tokens, band)
        await asyncio.sleep(0)
        ticket.wrote(5)
        self.end(ticket)


async def test_with_room_nobody_waits() -> None:
    worker = Worker(3)
    for tenant in "aaa":
        await asyncio.wait_for(worker.ask(tenant), 1)
    assert worker.queue.num_waiting == 0


async def test_a_flood_and_a_light_tenant_take_turns() -> None:
    worker = Worker(1)
    flood = [asyncio.create_task(worker.run("flood")) for _ in range(50)]
    await asyncio.sleep(0)
    light = [asyncio.create_task(worker.run("light")) for _ in range(5)]
    await asyncio.gather(*flood, *light)
    assert worker.order[1:11].count("light") == 5
    assert worker.queue.num_waiting == 0
    assert worker.queue._num_running == {}


async def test_a_kept_place_is_for_tenants_that_have_nothing_running() -> None:
    worker = Worker(3, num_kept=1)
    flood = [asyncio.create_task(worker.ask("flood")) for _ in range(9)]
    await asyncio.sleep(0.01)
    assert worker.num_running == 2
    await asyncio.wait_for(worker.ask("light"), 1)
    assert worker.queue.num_waiting == 7
    for task in flood:
        task.cancel()


async def test_urgent_bands_go_first_and_the_lower_ones_do_not_starve() -> None:
    worker = Worker(1)
    first = await worker.ask("z")
    tasks = [asyncio.create_task(worker.run(band, band=band)) for band in reversed(BANDS) for _ in range(30)]
    await asyncio.sleep(0)
    worker.end(first)
    await asyncio.gather(*tasks)
    assert worker.order[1:10] == ["priority"] * 9
    assert 2 <= worker.order[1:31].count("batch") <= 4
    assert len(worker.order) == 91


async def test_room_that_nobody_tells_of_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_queue, "LOOK_AGAIN_S", 0.01)
    worker = Worker(0)
    waiting = asyncio.create_task(worker.ask("a"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    worker.num_places = 1
    await asyncio.wait_for(waiting, 1)
    await asyncio.sleep(0.03)
    assert worker.queue._looking is None


async def test_who_leaves_costs_nobody_a_turn() -> None:
    worker = Worker(1)
    first = await worker.ask("a")
    tasks = [asyncio.create_task(worker.run(f"t{number}")) for number in range(6)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[3].cancel()
    worker.end(first)
    tasks[1].cancel()  # it may have its turn by now, and has not taken it
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(worker.order[1:]) == ["t2", "t4", "t5"]
    await asyncio.wait_for(worker.ask("a"), 1)


async def test_a_full_queue_refuses_by_tenant_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_queue, "MAX_WAITING_OF_TENANT", 3)
    monkeypatch.setattr(fair_queue, "MAX_WAITING", 5)
    worker = Worker(0)
    tasks = [asyncio.create_task(worker.ask(tenant)) for tenant in "aaabb"]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="3 requests of this tenant wait"):
        await worker.ask("a")
    with pytest.raises(Overloaded, match="5 requests wait"):
        await worker.ask("c")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert worker.queue.num_waiting == 0


async def test_who_cannot_be_in_time_is_refused_at_once_and_who_is_late_is_told() -> None:
    worker = Worker(1)
    held = await worker.ask("a")
    with pytest.raises(DeadlineExceeded, match=r"within the 0\.05 s"):
        await worker.ask("b", timeout_s=0.05)
    tasks = [asyncio.create_task(worker.ask("a")) for _ in range(20)]
    await asyncio.sleep(0)
    worker.queue._turn_s = 2.0
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with pytest.raises(DeadlineExceeded, match=r"turn would come in about 40 s, and the caller gave 5 s"):
        await worker.ask("a", timeout_s=5.0)
    assert loop.time() - begun < 1
    patient = asyncio.create_task(worker.ask("other", timeout_s=5.0))
    await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    worker.end(held)
    await asyncio.wait_for(patient, 1)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(BANDS), st.integers(1, 50)), max_size=30),
    st.integers(1, 4),
)
def test_everybody_has_a_turn_and_no_place_is_lost(asked: list[tuple[str, Band, int]], num_places: int) -> None:
    async def run() -> None:
        worker = Worker(num_places, num_kept=min(1, num_places - 1))
        await asyncio.wait_for(asyncio.gather(*(worker.run(name, size, band) for name, band, size in asked)), 10)
        assert sorted(worker.order) == sorted(name for name, _, _ in asked)
        assert (worker.num_running, worker.queue.num_waiting, worker.queue._in_transit) == (0, 0, 0)

    asyncio.run(run())
