"""Prompts that are refused for a while: which, how long, and how many are kept."""

import pytest
from support.dispatching import a_submit

from gemline.errors import PoisonRequest
from gemline.gateway.quarantine import MAX_HELD, Quarantine


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quarantine(clock: Clock) -> Quarantine:
    return Quarantine(300.0, clock=clock)


def test_a_prompt_is_refused_until_its_time_is_over(quarantine: Quarantine, clock: Clock) -> None:
    quarantine.hold(a_submit())
    clock.now_s += 290
    with pytest.raises(PoisonRequest, match="refused for another 10 s"):
        quarantine.check(a_submit())
    clock.now_s += 10
    quarantine.check(a_submit())


def test_what_was_generated_and_how_is_no_part_of_the_fingerprint(quarantine: Quarantine) -> None:
    quarantine.hold(a_submit())
    later = a_submit("req_2", max_tokens=3)
    later.token_ids.extend([8, 9])
    with pytest.raises(PoisonRequest):
        quarantine.check(later)


@pytest.mark.parametrize(("prompt", "salt"), [([2, 6], b"acme"), ([2, 5, 5], b"acme"), ([2, 5], b"umbrella")])
def test_other_prompts_and_other_tenants_are_not_refused(
    quarantine: Quarantine, prompt: list[int], salt: bytes
) -> None:
    quarantine.hold(a_submit())
    submit = a_submit(prompt=prompt)
    submit.cache_salt = salt
    quarantine.check(submit)


def test_it_keeps_so_many_and_lets_the_oldest_go(quarantine: Quarantine) -> None:
    for i in range(MAX_HELD + 1):
        quarantine.hold(a_submit(prompt=[2, i]))
    quarantine.check(a_submit(prompt=[2, 0]))
    for i in (1, MAX_HELD):
        with pytest.raises(PoisonRequest):
            quarantine.check(a_submit(prompt=[2, i]))


def test_a_prompt_that_is_held_again_is_held_anew(quarantine: Quarantine, clock: Clock) -> None:
    quarantine.hold(a_submit())
    quarantine.hold(a_submit(prompt=[2, 6]))
    clock.now_s += 200
    quarantine.hold(a_submit())
    clock.now_s += 200
    quarantine.check(a_submit(prompt=[2, 6]))
    with pytest.raises(PoisonRequest):
        quarantine.check(a_submit())
