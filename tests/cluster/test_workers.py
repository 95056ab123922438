import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from gemline.cluster import scripts
from gemline.cluster.connection import TIMEOUT_S, connect
from gemline.cluster.embedded import EmbeddedRedis
from gemline.cluster.records import Role, State, WorkerRecord
from gemline.cluster.workers import WorkerLease, WorkersView
from gemline.errors import StaleEpoch, Unavailable

TTL_S = 1.2
RENEW_S = 0.2
RESYNC_S = 0.05


async def until(holds: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def quick_lease(
    redis: Redis, record: WorkerRecord, on_epoch: Callable[[int], None] = lambda epoch: None
) -> WorkerLease:
    return WorkerLease(redis, record, TTL_S, RENEW_S, on_epoch=on_epoch)


@pytest.fixture
async def view(redis: Redis) -> AsyncIterator[WorkersView]:
    view = WorkersView(redis, RESYNC_S)
    await view.start()
    yield view
    await view.stop()


@pytest.fixture
async def redis_of_its_own(tmp_path: Path) -> AsyncIterator[tuple[EmbeddedRedis, Redis]]:
    """A redis-server that a test may stop, freeze and kill."""
    server = EmbeddedRedis(tmp_path)
    client = connect(server.start())
    yield server, client
    await client.aclose()
    server.stop()


async def test_a_registered_worker_is_seen_as_it_described_itself(
    redis: Redis, record: WorkerRecord, view: WorkersView
) -> None:
    lease = quick_lease(redis, record)
    epoch = await lease.register()
    await until(lambda: bool(view.workers(Role.DECODE)))
    assert view.workers(Role.DECODE) == (replace(record, epoch=epoch),)
    assert lease.record.epoch == epoch
    await lease.withdraw()


async def test_a_change_is_told_long_before_the_next_resync(redis: Redis, record: WorkerRecord) -> None:
    view = WorkersView(redis, resync_s=30)
    await view.start()
    await asyncio.sleep(0.05)
    lease = quick_lease(redis, record)
    await lease.register()
    await until(lambda: bool(view.workers(Role.DECODE)), timeout_s=1)
    await lease.drain()
    await until(lambda: view.workers(Role.DECODE)[0].state is State.DRAINING, timeout_s=1)
    await lease.withdraw()
    await until(lambda: not view.workers(Role.DECODE), timeout_s=1)
    await view.stop()


async def test_workers_are_found_by_role_and_model(redis: Redis, record: WorkerRecord, view: WorkersView) -> None:
    other_model = replace(record, worker_id="decode-2", model=replace(record.model, model_id="gemma-9b"))
    prefill = replace(record, worker_id="prefill-1", role=Role.PREFILL)
    leases = [quick_lease(redis, each) for each in (other_model, prefill, record)]
    for lease in leases:
        await lease.register()
    await until(lambda: len(view.workers(Role.DECODE)) == 2)
    assert [worker.worker_id for worker in view.workers(Role.DECODE)] == ["decode-1", "decode-2"]
    assert [worker.worker_id for worker in view.workers(Role.DECODE, "gemma-9b")] == ["decode-2"]
    assert [worker.worker_id for worker in view.workers(Role.PREFILL, "gemma")] == ["prefill-1"]
    assert view.workers(Role.TOKENIZATION) == ()
    for lease in leases:
        await lease.withdraw()


async def test_a_lease_outlives_its_ttl_while_it_is_renewed(
    redis: Redis, record: WorkerRecord, view: WorkersView
) -> None:
    lease = quick_lease(redis, record)
    epoch = await lease.register()
    await asyncio.sleep(TTL_S * 2)
    assert lease.valid
    assert view.workers(Role.DECODE)[0].epoch == epoch
    await lease.withdraw()


async def test_a_worker_that_stops_renewing_vanishes(redis: Redis, record: WorkerRecord, view: WorkersView) -> None:
    lease = WorkerLease(redis, record, TTL_S, renew_s=60)
    await lease.register()
    await until(lambda: bool(view.workers(Role.DECODE)))
    await until(lambda: not view.workers(Role.DECODE), timeout_s=TTL_S + 1)
    assert not lease.valid
    await lease.withdraw()


async def test_a_lease_is_not_valid_before_and_after_it_is_held(redis: Redis, record: WorkerRecord) -> None:
    lease = quick_lease(redis, record)
    assert not lease.valid
    await lease.register()
    assert lease.valid
    await lease.withdraw()
    assert not lease.valid


async def test_a_worker_that_is_awake_goes_on_while_redis_is_away(
    redis_of_its_own: tuple[EmbeddedRedis, Redis], record: WorkerRecord
) -> None:
    server, redis = redis_of_its_own
    lease = quick_lease(redis, record)
    await lease.register()
    server.stop()
    for _ in range(20):
        await asyncio.sleep(TTL_S / 5)
        assert lease.valid
    await lease.withdraw()


async def test_a_process_that_stood_still_finds_its_lease_over_and_takes_a_new_one(
    redis: Redis, record: WorkerRecord
) -> None:
    epochs: list[int] = []
    lease = quick_lease(redis, record, epochs.append)
    await lease.register()
    time.sleep(TTL_S + 0.05)  # noqa: ASYNC251  # as if the whole process had been stopped
    assert not lease.valid
    await until(lambda: lease.valid)
    assert len(epochs) == 2
    await lease.withdraw()


async def test_a_process_that_stood_still_within_a_renewal_does_not_prolong_what_is_over(
    redis_of_its_own: tuple[EmbeddedRedis, Redis], record: WorkerRecord
) -> None:
    server, redis = redis_of_its_own
    lease = quick_lease(redis, record)
    await lease.register()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    await asyncio.sleep(RENEW_S * 1.5)  # the renewal is on its way
    time.sleep(max(TIMEOUT_S, TTL_S))  # noqa: ASYNC251  # longer than the lease; the renewal's time is over too
    await asyncio.sleep(RENEW_S)
    assert not lease.valid
    os.kill(server.pid, signal.SIGCONT)
    await lease.withdraw()


async def test_a_lost_lease_is_taken_anew_under_a_greater_epoch(
    redis: Redis, record: WorkerRecord, view: WorkersView
) -> None:
    epochs: list[int] = []
    lease = quick_lease(redis, record, epochs.append)
    await lease.register()
    await redis.flushall()
    await until(lambda: len(epochs) == 2)
    assert epochs[1] > epochs[0]
    await until(lambda: [worker.epoch for worker in view.workers(Role.DECODE)] == [epochs[1]])
    assert lease.valid
    lease.check()
    await lease.withdraw()


async def test_the_worker_hears_of_an_epoch_before_its_lease_counts(redis: Redis, record: WorkerRecord) -> None:
    heard: list[bool] = []
    lease: WorkerLease = quick_lease(redis, record, lambda epoch: heard.append(lease.valid))
    await lease.register()
    assert heard == [False]
    await lease.withdraw()


async def test_no_epoch_is_given_twice_even_by_a_redis_that_lost_everything(redis: Redis, record: WorkerRecord) -> None:
    epochs = []
    for number in range(20):
        lease = quick_lease(redis, replace(record, worker_id=f"decode-{number}"))
        epochs.append(await lease.register())
        await lease.withdraw()
        await redis.flushall()
    assert epochs == sorted(set(epochs))


async def test_workers_that_register_at_once_get_epochs_of_their_own(redis: Redis, record: WorkerRecord) -> None:
    leases = [quick_lease(redis, replace(record, worker_id=f"decode-{number}")) for number in range(20)]
    epochs = await asyncio.gather(*(lease.register() for lease in leases))
    assert len(set(epochs)) == 20
    for lease in leases:
        await lease.withdraw()


async def test_a_worker_whose_name_was_taken_stops_for_good(redis: Redis, record: WorkerRecord) -> None:
    older, newer = quick_lease(redis, record), quick_lease(redis, record)
    await older.register()
    await newer.register()
    await until(lambda: not older.valid)
    with pytest.raises(StaleEpoch, match="decode-1"):
        older.check()
    await older.withdraw()
    assert newer.valid
    newer.check()
    await newer.withdraw()


async def test_load_is_told_with_each_renewal(redis: Redis, record: WorkerRecord, view: WorkersView) -> None:
    load = (3, 1)
    lease = WorkerLease(redis, record, TTL_S, RENEW_S, load=lambda: load)
    await lease.register()
    await until(lambda: [(w.num_running, w.num_waiting) for w in view.workers(Role.DECODE)] == [(3, 1)])
    load = (0, 0)
    await until(lambda: view.workers(Role.DECODE)[0].num_running == 0)
    await lease.withdraw()


async def test_everything_known_stays_while_redis_is_away(
    redis_of_its_own: tuple[EmbeddedRedis, Redis], record: WorkerRecord
) -> None:
    server, redis = redis_of_its_own
    lease = WorkerLease(redis, record, renew_s=60)
    await lease.register()
    view = WorkersView(redis, RESYNC_S)
    await view.start()
    known = view.workers(Role.DECODE)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await asyncio.sleep(RESYNC_S * 6)
    assert view.workers(Role.DECODE) == known
    await view.stop()
    await lease.withdraw()


async def test_the_view_follows_again_when_redis_is_back(
    redis_of_its_own: tuple[EmbeddedRedis, Redis], record: WorkerRecord
) -> None:
    server, redis = redis_of_its_own
    view = WorkersView(redis, RESYNC_S)
    await view.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    await asyncio.sleep(0.4)
    os.kill(server.pid, signal.SIGCONT)
    lease = quick_lease(redis, record)
    await lease.register()
    await until(lambda: bool(view.workers(Role.DECODE)))
    await lease.withdraw()
    await view.stop()


async def test_registering_without_a_redis_is_a_clear_error(
    redis_of_its_own: tuple[EmbeddedRedis, Redis], record: WorkerRecord
) -> None:
    server, redis = redis_of_its_own
    server.stop()
    with pytest.raises(Unavailable, match=r"Redis at 127.0.0.1"):
        await quick_lease(redis, record).register()
    with pytest.raises(Unavailable, match=r"Redis at 127.0.0.1"):
        await WorkersView(redis).start()


async def test_every_listener_hears_of_a_change_even_when_one_fails(
    redis: Redis, record: WorkerRecord, view: WorkersView
) -> None:
    heard: list[int] = []
    view.on_change(lambda: heard.append(1 // 0))
    view.on_change(lambda: heard.append(len(view.workers(Role.DECODE))))
    lease = quick_lease(redis, record)
    await lease.register()
    await until(lambda: heard == [1])
    await lease.withdraw()
    await until(lambda: heard == [1, 0])


async def test_a_record_that_nobody_can_read_hides_no_other(
    redis: Redis, record: WorkerRecord, view: WorkersView
) -> None:
    lease, strange = quick_lease(redis, record), quick_lease(redis, replace(record, worker_id="decode-2"))
    await strange.register()
    await lease.register()
    await redis.hset(scripts.KEYS[0], "decode-2", '{"role": "from the future"}')
    await until(lambda: [worker.worker_id for worker in view.workers(Role.DECODE)] == ["decode-1"])
    await strange.withdraw()
    await lease.withdraw()


async def test_nothing_is_left_in_redis_of_a_worker_that_withdrew(redis: Redis, record: WorkerRecord) -> None:
    lease = quick_lease(redis, record)
    await lease.register()
    await lease.withdraw()
    assert await redis.keys("*") == [scripts.KEYS[3].encode()]  # the newest epoch alone
