"""What the workers of a new release must have in common with each other, and with those they follow."""

from dataclasses import replace
from typing import Any

import pytest

from gemline.cluster.records import ModelCard, Role, State, WorkerRecord
from gemline.rollout.handshake import can_share_streams, models_of, objections, variant

ENGINE = ModelCard("m", "r1", 8192, 100, (1,), "tok", "bfloat16", "int8")
READER = replace(ENGINE, dtype="", quantization="")


def release(name: str, card: ModelCard = ENGINE, prefill: bool = False) -> list[WorkerRecord]:
    roles = {Role.TOKENIZATION: replace(READER, tokenizer_sha256=card.tokenizer_sha256), Role.DECODE: card}
    roles |= {Role.PREFILL: card} if prefill else {}
    return [WorkerRecord(f"{name}-{role.value}", role, "a:1", own, release=name) for role, own in roles.items()]


def test_a_release_like_the_old_one_may_follow_it_and_go_on_with_its_streams() -> None:
    new, old = release("new"), release("old")
    assert objections(new, old) == []
    assert can_share_streams(new, old)
    assert models_of(new) == ("m",)


@pytest.mark.parametrize("change", [{"revision": "r2"}, {"dtype": "float32"}, {"quantization": "int4"}])
def test_other_weights_may_follow_and_streams_end_where_they_are(change: dict[str, Any]) -> None:
    card = replace(ENGINE, **change)
    assert objections(release("new", card), release("old")) == []
    assert not can_share_streams(release("new", card), release("old"))
    assert variant(card) != variant(ENGINE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer_sha256": "tik"}, "model m: tokenizer_sha256 is tik, was tok: sessions could not go on"),
        ({"vocab_size": 99}, "model m: vocab_size is 99, was 100: sessions could not go on"),
        ({"context_length": 4096}, "model m: context_length is 4096, was 8192: sessions could not go on"),
    ],
)
def test_what_sessions_would_trip_over_is_named_with_both_values(change: dict[str, Any], words: str) -> None:
    assert objections(release("new", replace(ENGINE, **change)), release("old")) == [words]


def test_a_longer_context_is_welcome() -> None:
    assert objections(release("new", replace(ENGINE, context_length=9000)), release("old")) == []


def test_roles_that_lack_are_named() -> None:
    assert objections([], []) == ["no decode worker of the new release has registered"]
    assert objections([], release("old", prefill=True)) == [
        f"model m: no {role} worker is ready" for role in ("tokenization", "prefill", "decode")
    ]
    draining = [replace(it, state=State.DRAINING) for it in release("new")]
    assert "model m: no decode worker is ready" in objections(draining, release("old"))
    assert objections(release("new", prefill=True), release("old")) == []


def test_workers_of_one_release_that_differ_are_named() -> None:
    new = [*release("new"), *release("new", replace(ENGINE, revision="r3"))]
    assert objections(new, release("old")) == ["model m: workers of the release differ in revision: r1, r3"]


def test_a_tokenizer_that_nobody_has_is_named() -> None:
    new = release("new")
    new[0] = replace(new[0], model=replace(READER, tokenizer_sha256="tik"))
    assert objections(new, []) == ["model m: tokenizer tok of the engines is not that of a tokenization worker"]
