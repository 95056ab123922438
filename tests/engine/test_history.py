"""What penalties know of a sequence, however it came to be."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gemline.engine.history import History

TOKENS = st.lists(st.integers(0, 5), max_size=20)


@given(prompt=TOKENS, given=TOKENS, answer=TOKENS)
def test_every_distinct_token_is_there_once_with_its_count_in_the_answer(
    prompt: list[int], given: list[int], answer: list[int]
) -> None:
    history = History(prompt, given)
    for token_id in answer:
        history.append(token_id)
    counts = Counter([*given, *answer])
    seen = dict(zip(history.token_ids, history.answer_counts, strict=True))
    assert len(seen) == len(history.token_ids)
    assert seen == {token_id: counts[token_id] for token_id in {*prompt, *given, *answer}}
