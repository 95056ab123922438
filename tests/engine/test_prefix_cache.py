"""The prefix cache through the toy engine: what is found, what is kept, who shares, and that no token changes."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from support.block_account import check_blocks

from gemline.engine.blocks import BlockCounts
from gemline.engine.engine import Engine, EngineOptions, EngineRequest
from gemline.engine.events import TokenEvent
from gemline.engine.params import SamplingParams
from gemline.engine.toy import TOY_CONFIG, ToyModel, toy_answer, toy_engine

OPTIONS = EngineOptions(num_kv_blocks=64, block_size=4, max_batch_tokens=64, max_running=8)  # the window is 6
TEXT = tuple(range(40, 96))


class Talk:
    """Requests to one engine, by number."""

    def __init__(self, options: EngineOptions = OPTIONS, model: ToyModel | None = None) -> None:
        self.engine = toy_engine(options, model)
        self.num_requests = 0

    def add(
        self, prompt: Iterable[int], max_tokens: int = 1, salt: bytes = b"tenant", hold: bool = False, num_more: int = 0
    ) -> int:
        self.num_requests += 1
        token_ids, params = tuple(prompt), SamplingParams(max_tokens=max_tokens, temperature=0.0)
        self.engine.add(EngineRequest(self.num_requests, token_ids, len(token_ids) - num_more, params, hold, salt))
        return self.num_requests

    def run(self) -> list[TokenEvent]:
        """Until all have ended."""
        events: list[TokenEvent] = []
        while self.engine.has_work:
            events += self.engine.step().tokens
            check_blocks(self.engine._roster)
        return events

    def ask(self, prompt: Iterable[int], max_tokens: int = 1, salt: bytes = b"tenant") -> int:
        """How many tokens were found in the cache; the answer is checked."""
        prompt = tuple(prompt)
        self.add(prompt, max_tokens, salt)
        events = self.run()
        assert [event.token_id for event in events] == toy_answer(prompt, max_tokens)
        assert all(event.num_cached == 0 for event in events[1:])
        return events[0].num_cached


def evict_all(engine: Engine, *, is_local: bool) -> None:
    cache, pool = engine._roster._cache, engine._roster._local_pool if is_local else engine._roster._global_pool
    while pool.num_idle:
        cache.make_room(is_local=is_local)
        check_blocks(engine._roster)


def test_whole_blocks_of_an_earlier_prompt_are_found_and_one_token_is_always_computed() -> None:
    talk = Talk()
    assert [talk.ask(TEXT[:length]) for length in (23, 23, 24, 25, 26)] == [0, 20, 20, 24, 24]


def test_the_next_turn_goes_on_from_the_end_of_the_answer() -> None:
    talk = Talk()
    history = (*TEXT[:10], *toy_answer(TEXT[:10], 13))
    assert talk.ask(TEXT[:10], max_tokens=13) == 0
    assert talk.ask((*history, 1, 2, 3)) == 20  # 22 have been computed: the answer's last token has not


@pytest.mark.parametrize(("salt", "num_found"), [(b"tenant", 20), (b"another", 0), (b"", 0)])
def test_only_the_same_tenant_finds_it(salt: bytes, num_found: int) -> None:
    talk = Talk()
    talk.ask(TEXT[:23])
    assert talk.ask(TEXT[:23], salt=salt) == num_found


def test_without_a_salt_nothing_is_kept() -> None:
    talk = Talk()
    talk.ask(TEXT[:23], salt=b"")
    assert talk.ask(TEXT[:23], salt=b"") == 0
    assert talk.engine.num_evictable_blocks == (0, 0)


def test_when_told_so_the_engine_keeps_nothing() -> None:
    talk = Talk(replace(OPTIONS, prefix_cache=False))
    assert [talk.ask(TEXT[:23]) for _ in range(2)] == [0, 0]
    assert talk.engine.num_evictable_blocks == (0, 0)


def test_another_model_revision_names_its_blocks_differently() -> None:
    roots = [
        Engine(ToyModel(), TOY_CONFIG, OPTIONS, revision)._roster._cache.begin(b"tenant") for revision in ("a", "b")
    ]
    assert roots[0] is not None and roots[1] is not None
    assert roots[0].roots != roots[1].roots


def test_kept_blocks_are_free_until_somebody_needs_them() -> None:
    talk = Talk()
    talk.ask(TEXT[:41])
    assert talk.engine.num_free_blocks == talk.engine.num_blocks
    assert talk.engine.num_evictable_blocks == (10, 10)


def test_a_hit_needs_the_window_before_it_in_the_local_pool() -> None:
    talk = Talk()
    talk.ask(TEXT[:41])
    evict_all(talk.engine, is_local=True)
    assert talk.engine.num_evictable_blocks.num_global == 10
    assert talk.ask(TEXT[:41]) == 0
    assert talk.ask(TEXT[:41]) == 40


def test_a_hit_needs_every_block_before_it_in_the_global_pool() -> None:
    talk = Talk()
    talk.ask(TEXT[:41])
    for _ in range(3):
        talk.engine._roster._cache.make_room(is_local=False)
    assert talk.ask(TEXT[:41]) == 28  # the deepest went first, and the local blocks with them
    evict_all(talk.engine, is_local=False)
    assert talk.engine.num_evictable_blocks == (0, 0)
    assert talk.ask(TEXT[:41]) == 0


def test_local_blocks_that_left_the_window_go_before_those_a_next_turn_needs() -> None:
    talk = Talk(replace(OPTIONS, max_batch_tokens=8))
    talk.ask(TEXT[:41])
    for _ in range(8):  # of ten; the last two are the window's
        talk.engine._roster._cache.make_room(is_local=True)
    assert talk.ask(TEXT[:45]) == 40


def test_blocks_of_two_with_the_same_prefix_are_held_once() -> None:
    talk = Talk()
    first = talk.add(TEXT[:41], max_tokens=20)
    talk.engine.step()
    num_free = talk.engine.num_free_blocks
    talk.add(TEXT[:41], max_tokens=20)
    talk.engine.step()
    assert [before - after for before, after in zip(num_free, talk.engine.num_free_blocks, strict=True)] == [1, 1]
    talk.engine.cancel(first)
    check_blocks(talk.engine._roster)
    assert [event.token_id for event in talk.run()] == toy_answer(TEXT[:41], 20)[1:]


def test_blocks_computed_side_by_side_become_one() -> None:
    talk = Talk()
    for _ in range(2):
        talk.add(TEXT[:25], max_tokens=20)
    talk.engine.step()  # both prompts are in it, and neither could find the other's
    used = [total - free for total, free in zip(talk.engine.num_blocks, talk.engine.num_free_blocks, strict=True)]
    assert used == [6 + 2, 2 + 2]
    answers = talk.run()
    assert [event.token_id for event in answers if event.seq_id == 2] == toy_answer(TEXT[:25], 20)[1:]


def test_many_that_begin_alike_compute_the_beginning_in_one_step_only() -> None:
    talk = Talk(replace(OPTIONS, max_batch_tokens=48, num_kv_blocks=200))
    prompts = [(*TEXT[:32], session, session, session) for session in range(8)]
    for prompt in prompts:
        talk.add(prompt)
    first, second = talk.engine.step(), talk.engine.step()
    assert first.num_batch_tokens == 48  # of two prompts of 35
    assert second.num_batch_tokens == 22 + 6 * 3
    answers = {event.seq_id: event.token_id for event in (*first.tokens, *second.tokens)}
    assert answers == {n + 1: toy_answer(prompt, 1)[0] for n, prompt in enumerate(prompts)}


def test_what_a_cancelled_prefill_computed_is_found() -> None:
    talk = Talk(replace(OPTIONS, max_batch_tokens=8))
    seq_id = talk.add(TEXT[:41])
    for _ in range(3):
        talk.engine.step()
    talk.engine.cancel(seq_id)
    assert talk.ask(TEXT[:41]) == 24


def test_who_was_sent_back_finds_its_own_blocks_again() -> None:
    talk = Talk(replace(OPTIONS, num_kv_blocks=18))
    prompts = {talk.add(TEXT[n : n + 20], max_tokens=30): TEXT[n : n + 20] for n in range(3)}
    answers: dict[int, list[int]] = {seq_id: [] for seq_id in prompts}
    num_preempted = num_computed = 0
    while talk.engine.has_work:
        result = talk.engine.step()
        check_blocks(talk.engine._roster)
        num_preempted += result.num_preempted
        num_computed += result.num_batch_tokens
        for event in result.tokens:
            answers[event.seq_id].append(event.token_id)
    assert answers == {seq_id: toy_answer(prompt, 30) for seq_id, prompt in prompts.items()}
    assert num_preempted
    assert talk.engine.cache_use.num_queried_tokens == 60  # each once, however often it was admitted


def test_a_sequence_that_failed_leaves_nothing_to_be_found() -> None:
    talk = Talk(replace(OPTIONS, max_batch_tokens=8), ToyModel(nan_token_id=3))
    talk.ask(TEXT[:12])
    talk.add((*TEXT[:24], 3))
    failures = [failure for _ in range(3) for failure in talk.engine.step().failures]
    check_blocks(talk.engine._roster)
    assert len(failures) == 1
    assert talk.ask(TEXT[:24]) == 12


def imported(talk: Talk, prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    """Has the prompt prefilled by another engine; the first token."""
    source = toy_engine(OPTIONS)
    params = SamplingParams(max_tokens, temperature=0.0)
    request = EngineRequest(99, prompt, len(prompt), params, cache_salt=b"tenant")
    source.add(replace(request, hold=True))
    (first,) = source.step().tokens
    assert talk.engine.reserve(request)
    for layer, (start, stop) in enumerate(source.kv_ranges(len(prompt))):
        talk.engine.import_kv(99, layer, start, stop, source.export_kv(99, layer, start, stop))
    assert talk.engine.finish_import(99, first.token_id, num_cached=7).num_cached == 7
    check_blocks(talk.engine._roster)
    return [first.token_id]


def test_an_imported_block_that_lacks_its_first_positions_is_not_taken_for_a_whole_one() -> None:
    talk = Talk()
    imported(talk, TEXT[:23], max_tokens=12)  # of the local layers [18, 23); the block of 18 begins at 16
    talk.engine.cancel(99)
    assert talk.ask(TEXT[:23]) == 0  # a query at 20 sees 15, and one at 16 sees 11


def test_what_was_decoded_after_an_import_is_found() -> None:
    talk = Talk()
    answer = imported(talk, TEXT[:23], max_tokens=12) + [event.token_id for event in talk.run()]
    assert answer == toy_answer(TEXT[:23], 12)
    assert talk.ask((*TEXT[:23], *answer, 1)) == 32


def test_the_first_token_says_how_much_was_found_also_for_who_fetches_it() -> None:
    talk = Talk()
    talk.ask(TEXT[:23])
    talk.add(TEXT[:23], hold=True)
    (event,) = talk.engine.step().tokens
    assert event.num_cached == 20
    assert talk.engine.export_kv(2, 1, 0, 23).nbytes == talk.engine.export_kv(2, 1, 0, 23).nbytes
    talk.engine.cancel(2)


def test_an_answer_begun_elsewhere_says_it_once_too() -> None:
    talk = Talk()
    prompt, answer = TEXT[:10], toy_answer(TEXT[:10], 12)
    talk.ask(prompt, max_tokens=12)
    talk.add((*prompt, *answer[:6]), max_tokens=12, num_more=6)
    events = talk.run()
    assert [event.token_id for event in events] == answer[6:]
    assert [event.num_cached for event in events] == [12, 0, 0, 0, 0, 0]


def test_use_is_summed_up() -> None:
    talk = Talk()
    for _ in range(3):
        talk.ask(TEXT[:23])
    assert talk.engine.cache_use.num_queried_tokens == 69
    assert talk.engine.cache_use.num_hit_tokens == 40
    assert talk.engine.cache_use.hit_ratio == pytest.approx(40 / 69)
    assert talk.engine.cache_use.num_evicted == BlockCounts(0, 0)


def rounds(talk: Talk, num_sessions: int, num_rounds: int, length: int = 41) -> list[float]:
    """Every session in turn comes with the same prompt again; the share of the tokens that each round found."""
    prompts = [tuple((3 * session + 7 * n) % 97 for n in range(length)) for session in range(num_sessions)]
    return [sum(map(talk.ask, prompts)) / (num_sessions * length) for _ in range(num_rounds)]


def test_sessions_that_fill_a_quarter_of_the_pools_are_all_found_whole() -> None:
    """vLLM #48435: a cache that recycles window tails first finds nothing here, for anybody."""
    talk = Talk(replace(OPTIONS, num_kv_blocks=4 * 88, max_running=40))
    shares = rounds(talk, num_sessions=8, num_rounds=4)
    assert shares == [0, *[40 / 41] * 3]
    assert talk.engine.num_evictable_blocks == (80, 80)


@pytest.mark.parametrize("num_pools", [4, 5, 6, 8])
def test_sessions_in_turn_over_a_pool_for_some_of_them_go_on_hitting(num_pools: int) -> None:
    """LRU finds nothing here at any size below that of all: each session is thrown out just before its turn."""
    talk = Talk(replace(OPTIONS, num_kv_blocks=num_pools * 11, max_running=40))
    shares = rounds(talk, num_sessions=10, num_rounds=6)
    assert all(share >= 40 / 41 * (num_pools - 1) / 10 - 1e-9 for share in shares[2:])


def test_sessions_that_grow_in_turn_over_room_for_sixty_percent_go_on_hitting() -> None:
    talk = Talk(replace(OPTIONS, num_kv_blocks=10 * 15 * 6 // 10, max_running=40))
    histories = {session: tuple((3 * session + n) % 97 for n in range(13)) for session in range(10)}
    shares = []
    for turn in range(5):
        found = 0
        for session, history in histories.items():
            found += talk.ask(history, max_tokens=4)
            histories[session] = (*history, *toy_answer(history, 4), turn, session, 5, 6, 7)
        shares.append(found / sum(map(len, histories.values())))
    assert all(share > 0.3 for share in shares[2:])


def test_a_shared_prefix_outlives_requests_that_share_nothing() -> None:
    talk = Talk(replace(OPTIONS, num_kv_blocks=40))
    found = []
    for n in range(30):
        talk.ask(tuple((5 * n + 3 * i) % 97 for i in range(37)))
        found.append(talk.ask((*TEXT[:32], n, 2 * n, 3)))
    assert found[5:] == [32] * 25


@pytest.mark.parametrize(("share", "all_kept"), [(0.5, True), (1.0, False)])
def test_a_busy_tenant_washes_out_its_own_sessions_and_not_those_of_others(share: float, all_kept: bool) -> None:
    talk = Talk(replace(OPTIONS, num_kv_blocks=48, tenant_cache_share=share))
    quiet = [(*range(40, 51), number) for number in (1, 2, 3)]
    for prompt in quiet:
        talk.ask(prompt, salt=b"quiet")
    for number in range(20):
        talk.ask((60 + number, *range(20)), salt=b"busy")
    assert all([talk.ask(prompt, salt=b"quiet") > 0 for prompt in quiet]) == all_kept
