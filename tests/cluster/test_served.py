"""What gateways tell each other of the service that tenants got: each amount once, and only what others gave."""

from redis.asyncio import Redis

from gemline.cluster.served import ServedElsewhere


async def test_each_gateway_hears_what_the_other_gave_and_hears_it_once(redis: Redis) -> None:
    one, other = ServedElsewhere(redis), ServedElsewhere(redis)
    assert await one.exchange({}, ["a", "b"]) == {}
    assert await other.exchange({"a": 5.0}, ["a"]) == {}
    assert await one.exchange({"a": 2.5, "b": 1.0}, ["a", "b"]) == {"a": 5.0}
    assert await one.exchange({}, ["a", "b"]) == {}
    assert await other.exchange({}, ["a", "b"]) == {"a": 2.5}


async def test_who_comes_later_begins_at_nothing_and_a_redis_that_forgot_takes_nothing_back(redis: Redis) -> None:
    one = ServedElsewhere(redis)
    await one.exchange({"a": 100.0}, ["a"])
    late = ServedElsewhere(redis)
    assert await late.exchange({}, ["a"]) == {}
    await redis.flushall()
    assert await late.exchange({"a": 1.0}, ["a"]) == {}
    assert await late.exchange({}, []) == {}
