"""What of an answer's ids a session keeps: those whose text was shown."""

from hypothesis import given
from hypothesis import strategies as st

from gemline.demo.tokenizer import VOCAB_SIZE, build_tokenizer
from gemline.gateway.recording import shown_ids
from gemline.text.detokenizer import IncrementalDecoder
from gemline.text.stops import StopMatcher
from gemline.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(build_tokenizer().to_str().encode())
IDS = st.lists(
    st.integers(0, VOCAB_SIZE - 1).filter(lambda token_id: token_id not in TOKENIZER.control_ids), min_size=1
)
TEXTS = st.text("abcdefghijklmnoprstuvw 字é\n", min_size=1, max_size=30)


def shown(ids: list[int], stop: str) -> tuple[str, int]:
    """The text before the stop string, and how many ids it took to find it."""
    decoder, matcher, text = IncrementalDecoder(TOKENIZER), StopMatcher([stop]), ""
    for num_ids, token_id in enumerate(ids, start=1):
        scanned = matcher.push(decoder.push([token_id]))
        text += scanned.text
        if scanned.matched is not None:
            return text, num_ids
    return text + matcher.push(decoder.finish()).text + matcher.finish(), len(ids)


@given(TEXTS, st.data())
def test_the_ids_have_the_text_that_was_shown_wherever_a_stop_string_cuts(text: str, draw: st.DataObject) -> None:
    ids = TOKENIZER.encode_text(text)
    start = draw.draw(st.integers(0, len(text) - 1))
    stop = text[start : draw.draw(st.integers(start + 1, len(text)))]
    before, num_ids = shown(ids, stop)
    kept = shown_ids(TOKENIZER, ids[:num_ids], before)
    assert TOKENIZER.decode(kept) == before
    num_alike = sum(1 for mine, theirs in zip(kept, ids, strict=False) if mine == theirs)
    assert len(before) - len(TOKENIZER.decode(kept[:num_alike])) < max(len(TOKENIZER.token_text(i)) for i in ids)


@given(IDS)
def test_all_ids_are_kept_when_all_of_their_text_was_shown(ids: list[int]) -> None:
    assert shown_ids(TOKENIZER, ids, TOKENIZER.decode(ids)) == ids or not TOKENIZER.decode(ids).isascii()


def test_no_part_of_a_character_is_left_of_one_that_was_not_shown() -> None:
    ids = TOKENIZER.encode_text("aß")
    assert len(ids) == 3
    assert shown_ids(TOKENIZER, ids, "a") == ids[:1]
    assert shown_ids(TOKENIZER, ids, "") == []
