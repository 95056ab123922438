"""Copies beside an engine's steps: what was read counts only if nobody touched it, and none lands in others' blocks."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from support.hand_transfer import CONFIG
from support.still_engine import StillEngine

from gemline.engine import handover
from gemline.engine.handover import Positions
from gemline.engine.roster import UnknownSequence
from gemline.engine.sequence import Sequence
from gemline_kernels.scales import Scales

SMALL = replace(CONFIG, head_dim=4, num_hidden_layers=2, layer_kinds=CONFIG.layer_kinds[:2])
GLOBAL = 1
AT = Positions(0, 12)


@pytest.fixture
def still() -> StillEngine:
    return StillEngine(SMALL, 12)


def export(still: StillEngine, seq_id: int, at: Positions = AT) -> torch.Tensor:
    """both_2TGK, as it left."""
    form = still.form()
    out = bytearray((at.stop - at.start) * form.token_bytes)
    still.handover.export_kv(seq_id, GLOBAL, at, form, memoryview(out))
    return torch.frombuffer(out, dtype=torch.float32).view(2, -1, len(form.heads), form.head_dim)


def whole(still: StillEngine, value: float, num_tokens: int = 12) -> bytes:
    return bytes(torch.full((num_tokens * still.form().token_bytes // 4,), value).numpy().data)


def while_it_copies(still: StillEngine, happens: Callable[[], None], *, once: bool = True) -> list[int]:
    """Lets something happen in the middle of the next copy out, after its first byte and before its last."""
    gather, copies = still.cache.gather, []

    def spied(layer: int, slots_T: torch.Tensor, heads: range, out_2TGK: torch.Tensor) -> None:
        copies.append(len(slots_T))
        half = len(slots_T) // 2
        gather(layer, slots_T[:half], heads, out_2TGK[:, :half])
        if not once or len(copies) == 1:
            happens()
        gather(layer, slots_T[half:], heads, out_2TGK[:, half:])

    still.cache.gather = spied  # type: ignore[method-assign]
    return copies


def test_what_is_preempted_while_it_is_read_does_not_count(still: StillEngine) -> None:
    seq_id = still.prefilled(12)
    still.write(seq_id, 1.0)

    def preempted() -> None:
        still.preempt(seq_id)
        still.overwrite_free(-1.0)

    while_it_copies(still, preempted)

    with pytest.raises(IndexError):
        export(still, seq_id)


def test_what_is_given_the_same_blocks_again_while_it_is_read_is_read_again(still: StillEngine) -> None:
    seq_id = still.prefilled(12)
    still.write(seq_id, 1.0)
    before = still.slots(seq_id, GLOBAL, range(12))

    def computed_again() -> None:
        still.preempt(seq_id)
        still.overwrite_free(-1.0)
        still.admit(seq_id)
        still.compute(seq_id, 12)
        still.write(seq_id, 2.0)

    copies = while_it_copies(still, computed_again)

    read = export(still, seq_id)
    assert sorted(still.slots(seq_id, GLOBAL, range(12))) == sorted(before)
    assert len(copies) == 2
    assert read[0].eq(2.0).all() and read[1].eq(-2.0).all()


def test_blocks_that_are_given_out_but_not_computed_are_not_read(still: StillEngine) -> None:
    seq_id = still.prefilled(12)

    def begun_again() -> None:
        still.preempt(seq_id)
        still.admit(seq_id)
        still.roster._cover(still.roster.by_id[seq_id], 12)

    while_it_copies(still, begun_again)

    with pytest.raises(IndexError, match=r"\[0, 12\) are not computed; 0 are"):
        export(still, seq_id)


def test_blocks_given_out_between_the_question_what_is_computed_and_the_look_at_them_are_not_read(
    still: StillEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seq_id, ask = still.prefilled(12), handover._check_computed
    asked: list[Positions] = []

    def asked_too_early(sequence: Sequence, at: Positions) -> None:
        ask(sequence, at)
        if not asked:
            still.preempt(seq_id)
            still.admit(seq_id)
            still.roster._cover(sequence, 12)
        asked.append(at)

    monkeypatch.setattr(handover, "_check_computed", asked_too_early)

    with pytest.raises(IndexError, match=r"\[0, 12\) are not computed; 0 are"):
        export(still, seq_id)


def test_what_is_cancelled_while_it_is_read_does_not_count(still: StillEngine) -> None:
    seq_id = still.prefilled(12)
    while_it_copies(still, lambda: still.cancel(seq_id))

    with pytest.raises(IndexError):
        export(still, seq_id)
    with pytest.raises(UnknownSequence):
        export(still, seq_id)


def test_a_block_that_gives_way_to_an_equal_one_while_it_is_read_is_read_there() -> None:
    still = StillEngine(SMALL, 12, revision="shared")
    first, second = still.queued(9), still.queued(9)
    for seq_id in (first, second):
        still.admit(seq_id)
    still.compute(second, 3)
    still.compute(first, 9)
    for seq_id in (first, second):
        still.write(seq_id, 1.0)
    before = still.slots(second, GLOBAL, range(3))

    def filled() -> None:
        still.compute(second, 9)
        still.overwrite_free(-1.0)

    copies = while_it_copies(still, filled)

    read = export(still, second, Positions(0, 3))
    assert still.slots(second, GLOBAL, range(3)) != before
    assert len(copies) == 2
    assert read[0].eq(1.0).all() and read[1].eq(-1.0).all()


def test_readers_beside_preemptions_see_what_was_computed_or_nothing(still: StillEngine) -> None:
    seq_id, stop = still.queued(12), time.monotonic() + 1.0
    numbers = random.Random(0)
    seen = {"read": 0, "refused": 0}

    def read() -> None:
        while time.monotonic() < stop:
            try:
                both = export(still, seq_id, Positions(0, 8))
            except IndexError:
                seen["refused"] += 1
                continue
            assert both[0].eq(both[0, 0, 0, 0]).all() and both[1].eq(-both[0, 0, 0, 0]).all(), both
            assert both[0, 0, 0, 0] > 0
            seen["read"] += 1

    with ThreadPoolExecutor(2) as readers:
        reading = [readers.submit(read) for _ in range(2)]
        generation = 0
        while time.monotonic() < stop:
            generation += 1
            still.admit(seq_id)
            still.roster._cover(still.roster.by_id[seq_id], 12)
            still.overwrite_free(-1.0)
            still.write(seq_id, generation)  # computed first and told then, as a step does it
            still.compute(seq_id, 12)
            time.sleep(numbers.random() * 0.002)
            still.preempt(seq_id)
            still.overwrite_free(-1.0)
        for future in reading:
            future.result()
    assert min(seen.values()) > 10, seen


def held_up(still: StillEngine) -> tuple[threading.Event, threading.Event]:
    """Copies in stop half-way: the first event says that one is there, the second lets it go on."""
    scatter, inside, may_go_on = still.cache.scatter, threading.Event(), threading.Event()

    def spied(*arguments: object) -> None:
        inside.set()
        assert may_go_on.wait(10)
        scatter(*arguments)  # type: ignore[arg-type]

    still.cache.scatter = spied  # type: ignore[method-assign, assignment]
    return inside, may_go_on


def import_whole(still: StillEngine, seq_id: int, value: float) -> None:
    still.handover.import_kv(seq_id, GLOBAL, AT, still.form(), Scales(), whole(still, value))


def test_blocks_are_not_given_up_while_a_copy_lands_in_them(still: StillEngine) -> None:
    seq_id = still.reserved(12)
    inside, may_go_on = held_up(still)
    with ThreadPoolExecutor(2) as threads:
        landing = threads.submit(import_whole, still, seq_id, 5.0)
        assert inside.wait(10)
        slots = still.slots(seq_id, GLOBAL, range(12))
        cancelling = threads.submit(still.cancel, seq_id)
        time.sleep(0.05)
        assert not cancelling.done()
        assert seq_id in still.roster.by_id

        may_go_on.set()
        landing.result(10)
        cancelling.result(10)
    assert still.cache.pools[GLOBAL].keys.flatten(0, 1)[slots].eq(5.0).all()
    assert seq_id not in still.roster.by_id


@pytest.mark.parametrize("end", [StillEngine.cancel, lambda still, seq_id: still.handover.close(seq_id)])
def test_a_copy_that_waited_for_another_does_not_land_once_the_import_is_over(
    still: StillEngine, end: Callable[[StillEngine, int], None]
) -> None:
    seq_id = still.reserved(12)
    inside, may_go_on = held_up(still)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(import_whole, still, seq_id, 5.0)
        assert inside.wait(10)
        second = threads.submit(import_whole, still, seq_id, 6.0)
        time.sleep(0.05)
        ending = threads.submit(end, still, seq_id)
        time.sleep(0.05)
        may_go_on.set()

        first.result(10)
        ending.result(10)
        with pytest.raises(UnknownSequence, match=f"sequence {seq_id} is not importing"):
            second.result(10)


def test_writers_beside_cancels_never_touch_what_is_not_theirs(still: StillEngine) -> None:
    stop, landed = time.monotonic() + 1.0, [0]
    seq_ids: list[int] = []

    def write() -> None:
        while time.monotonic() < stop:
            for seq_id in seq_ids[-2:]:
                try:
                    import_whole(still, seq_id, float(seq_id))
                    landed[0] += 1
                except UnknownSequence:
                    pass

    with ThreadPoolExecutor(2) as writers:
        writing = [writers.submit(write) for _ in range(2)]
        while time.monotonic() < stop:
            seq_id = still.reserved(12)
            seq_ids.append(seq_id)
            time.sleep(0.0005)
            still.cancel(seq_id)
            still.overwrite_free(0.0)
            assert still.cache.pools[GLOBAL].keys.eq(0.0).all()  # nothing lands after the cancel
        for future in writing:
            future.result()
    assert landed[0] > 10
