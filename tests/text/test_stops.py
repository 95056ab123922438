from hypothesis import given
from hypothesis import strategies as st

from gemline.text.stops import StopMatcher

_LETTERS = st.text("ab", max_size=12)


def _expected(stops: list[str], text: str) -> tuple[str, str | None]:
    """The specification, the slow way: the stop string that ends first, the longest of those."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


def _run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    shown = ""
    for piece in pieces:
        text, matched = matcher.push(piece)
        shown += text
        if matched:
            return shown, matched
    return shown + matcher.finish(), None


@given(st.lists(st.text("ab", min_size=1, max_size=5), max_size=4), st.lists(_LETTERS, max_size=6))
def test_it_finds_what_a_search_of_the_whole_text_finds(stops: list[str], pieces: list[str]) -> None:
    assert _run(stops, pieces) == _expected(stops, "".join(pieces))


@given(st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4), st.lists(_LETTERS, max_size=6))
def test_it_holds_back_only_what_could_begin_a_stop_string(stops: list[str], pieces: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = seen = ""
    for piece in pieces:
        seen += piece
        text, matched = matcher.push(piece)
        shown += text
        if matched:
            return
        held = seen[len(shown) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_text_passes_at_once_without_stop_strings() -> None:
    matcher = StopMatcher([])
    assert matcher.push("abc") == ("abc", None)
    assert matcher.finish() == ""


def test_a_stop_string_is_found_across_pieces_and_is_not_shown() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("one E") == ("one ", None)
    assert matcher.push("N") == ("", None)
    assert matcher.push("D two") == ("", "END")


def test_what_only_began_like_a_stop_string_is_shown_later() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("EN") == ("", None)
    assert matcher.push("T") == ("ENT", None)
    assert matcher.push("E") == ("", None)
    assert matcher.finish() == "E"


def test_nothing_is_shown_after_a_match() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("a.b") == ("a", ".")
    assert matcher.push("c") == ("", ".")
    assert matcher.finish() == ""


def test_the_longest_of_the_strings_that_end_together_counts() -> None:
    assert StopMatcher(["\n", "\n\n", "a\n"]).push("b a\n") == ("b ", "a\n")


def test_an_empty_stop_string_is_none() -> None:
    assert StopMatcher([""]).push("abc") == ("abc", None)


def test_a_hostile_stop_string_costs_no_more_than_its_length() -> None:
    matcher = StopMatcher(["a" * 20_000 + "b"])
    shown = "".join(matcher.push("a" * 50).text for _ in range(2_000))
    assert len(shown) == 100_000 - 20_000
