"""What an operator changes of a record: the fields that were given, limits one by one. Pure; knows no Redis."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from gemline.cluster.access import KeyRecord, ProjectRecord, TenantRecord

RecordT = TypeVar("RecordT", TenantRecord, ProjectRecord, KeyRecord)


def changed(record: RecordT, changes: Mapping[str, Any]) -> RecordT:
    """The record with the fields of `changes`; of `limits`, itself a mapping, those it names. None takes one away.

    Raises ConfigurationError for a value that cannot be.
    """
    fields = dict(changes)
    if "limits" in fields:
        fields["limits"] = replace(record.limits, **fields["limits"])
    if fields.get("models") is not None:
        fields["models"] = tuple(fields["models"])
    return replace(record, **fields)
