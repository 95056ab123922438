"""Who is convicted of a worker's death, and who was only there."""

import pytest

from gemline.gateway.inbox import Inbox
from gemline.gateway.moves import Reason
from gemline.gateway.suspects import Record, Suspects, Trial
from gemline.internal.v1 import decode_pb2


def an_inbox() -> Inbox:
    return Inbox(lambda: None)


def on_trial(suspects: Suspects, record: Record, worker_id: str = "a") -> Trial:
    trial = suspects.begin(worker_id)
    trial.sent(an_inbox())
    record.tried(trial)
    return trial


def test_one_loss_makes_a_suspect_and_a_second_alone_convicts() -> None:
    record = Record()
    record.lost(may_be_caused=True)
    assert record.is_suspect and not record.is_convicted
    on_trial(Suspects(), record)
    record.lost(may_be_caused=True)
    assert record.is_convicted


def test_a_token_between_clears() -> None:
    record = Record()
    for _ in range(4):
        record.lost(may_be_caused=True)
        record.cleared()
    assert not record.is_suspect and not record.is_convicted


def test_a_worker_that_answers_no_pings_is_nobodys_doing() -> None:
    record = Record()
    for _ in range(4):
        record.lost(may_be_caused=False)
    assert not record.is_suspect and not record.is_convicted


@pytest.mark.parametrize("may_be_caused", [False, True])
def test_five_losses_are_too_many(may_be_caused: bool) -> None:
    record = Record()
    for _ in range(5):
        assert not record.is_convicted
        record.lost(may_be_caused=may_be_caused)
        record.cleared()
    assert record.is_convicted


def test_two_on_trial_at_one_worker_convict_neither() -> None:
    suspects, records = Suspects(), [Record(), Record()]
    for record in records:
        record.lost(may_be_caused=True)
    for record in records:
        on_trial(suspects, record)
    for record in records:
        record.lost(may_be_caused=True)
        assert record.is_suspect and not record.is_convicted


def test_a_worker_has_a_suspect_until_it_has_a_token_or_an_end_or_was_not_sent() -> None:
    suspects = Suspects()
    heard, ended, canceled, unsent = (suspects.begin(name) for name in "abcd")
    inboxes = [an_inbox() for _ in range(3)]
    for trial, inbox in zip((heard, ended, canceled), inboxes, strict=True):
        trial.sent(inbox)
    assert suspects.workers() == set("abcd")
    inboxes[0].deliver(decode_pb2.Event(token_ids=[7]))
    assert suspects.workers() == set("bcd")
    inboxes[1].fail(Reason.LOST)
    inboxes[2].cancel()
    unsent.abandon()
    assert suspects.workers() == set()


def test_a_worker_whose_suspect_was_cleared_tries_the_next_alone() -> None:
    suspects = Suspects()
    first = suspects.begin("a")
    inbox = an_inbox()
    first.sent(inbox)
    inbox.deliver(decode_pb2.Event(token_ids=[7]))
    assert suspects.begin("a").is_alone
    assert first.is_alone
