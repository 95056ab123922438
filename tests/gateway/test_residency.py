"""How much of a prompt each worker would find, from what workers say of their caches."""

from hypothesis import given
from hypothesis import strategies as st

from gemline.engine.engine import EngineOptions, EngineRequest
from gemline.engine.params import SamplingParams
from gemline.engine.toy import TOY_CONFIG, toy_engine
from gemline.gateway.residency import ResidencyIndex, prefix_names

NAMES = st.binary(min_size=1, max_size=1)
CHANGES = st.lists(
    st.tuples(st.sampled_from("abc"), st.lists(NAMES, max_size=4), st.lists(NAMES, max_size=4), st.booleans()),
    max_size=20,
)


@given(CHANGES, st.lists(NAMES, max_size=6))
def test_the_longest_hit_of_each_worker_is_what_looking_at_each_gives(
    changes: list[tuple[str, list[bytes], list[bytes], bool]], names: list[bytes]
) -> None:
    index: ResidencyIndex[str] = ResidencyIndex()
    held: dict[str, set[bytes]] = {}
    for worker, added, removed, leaves in changes:
        index.update(worker, added, removed)
        held[worker] = (held.get(worker, set()) - set(removed)) | set(added)
        if leaves:
            index.leave(worker)
            del held[worker]
    depths = {
        worker: max((depth for depth, name in enumerate(names, start=1) if name in mine), default=0)
        for worker, mine in held.items()
    }
    assert index.hits(names) == {worker: depth for worker, depth in depths.items() if depth}
    assert len(index) == len(set().union(*held.values()))


def test_who_was_never_there_may_leave() -> None:
    index: ResidencyIndex[str] = ResidencyIndex()
    index.leave("a")
    assert index.hits([b"x"]) == {}


def test_what_a_worker_says_foretells_what_a_next_turn_finds() -> None:
    engine = toy_engine(EngineOptions(num_kv_blocks=64, block_size=4, max_batch_tokens=64, max_running=4))
    index: ResidencyIndex[str] = ResidencyIndex()

    def turn(seq_id: int, prompt: list[int]) -> tuple[int, int, list[int]]:
        names = prefix_names("toy", b"tenant", 0, prompt, 4)
        predicted = 4 * index.hits(names).get("w", 0)
        params = SamplingParams(max_tokens=5, temperature=0.0)
        engine.add(EngineRequest(seq_id, tuple(prompt), len(prompt), params, cache_salt=b"tenant"))
        found, answer = 0, []
        while engine.has_work:
            result = engine.step()
            index.update("w", result.residency.added, result.residency.removed)
            found += sum(event.num_cached for event in result.tokens)
            answer += [event.token_id for event in result.tokens]
        return predicted, found, answer

    prompt = list(range(11))
    for seq_id in range(1, 6):
        predicted, found, answer = turn(seq_id, prompt)
        assert predicted == found
        assert (found > 0) == (seq_id > 1)
        prompt = [*prompt, *answer, 90 + seq_id]
    assert len(prompt) > TOY_CONFIG.sliding_window * 4
