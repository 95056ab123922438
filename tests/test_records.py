import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.cluster.records import ModelCard, Role, State, WorkerRecord

CARDS = st.builds(ModelCard, stop_token_ids=st.lists(st.integers(0, 2**31)).map(tuple))
RECORDS = st.builds(WorkerRecord, model=CARDS)


@given(record=RECORDS)
def test_a_record_survives_its_json(record: WorkerRecord) -> None:
    assert WorkerRecord.from_json(record.to_json()) == record


@given(record=RECORDS)
def test_a_record_is_one_line(record: WorkerRecord) -> None:
    assert "\n" not in record.to_json()


@given(record=RECORDS)
def test_fields_of_a_newer_version_are_left_out(record: WorkerRecord) -> None:
    fields = json.loads(record.to_json())
    fields["speed"] = 9
    fields["model"]["eyes"] = True
    assert WorkerRecord.from_json(json.dumps(fields)) == record


def test_fields_with_a_default_may_be_missing() -> None:
    card = ModelCard("gemma", "ab", 8192, 256000, (1, 107), "cd")
    record = WorkerRecord("w", Role.DECODE, "127.0.0.1:1", card, epoch=7, state=State.DRAINING, pid=3)
    fields = json.loads(record.to_json())
    del fields["epoch"], fields["state"], fields["pid"]
    assert WorkerRecord.from_json(json.dumps(fields)) == WorkerRecord("w", Role.DECODE, "127.0.0.1:1", card)


@pytest.mark.parametrize("field", ["worker_id", "role", "address", "model"])
def test_a_record_without_a_needed_field_is_refused(field: str) -> None:
    card = ModelCard("gemma", "ab", 8192, 256000, (1,), "cd")
    fields = json.loads(WorkerRecord("w", Role.DECODE, "127.0.0.1:1", card).to_json())
    del fields[field]
    with pytest.raises((KeyError, TypeError)):
        WorkerRecord.from_json(json.dumps(fields))
