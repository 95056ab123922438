import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline import errors
from gemline.engine.events import FinishReason, Logprobs
from gemline.engine.params import SamplingParams
from gemline.internal.v1 import decode_pb2, sampling_pb2
from gemline.rpc import convert

FLOATS = st.floats(-100, 100, width=32)
TOKEN_IDS = st.integers(0, 2**18)
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 8192),
    temperature=FLOATS,
    top_k=TOKEN_IDS,
    top_p=FLOATS,
    min_p=FLOATS,
    seed=st.integers(0, 2**64 - 1),
    repetition_penalty=FLOATS,
    presence_penalty=FLOATS,
    frequency_penalty=FLOATS,
    logit_bias=st.dictionaries(TOKEN_IDS, FLOATS),
    stop_token_ids=st.frozensets(TOKEN_IDS),
    num_logprobs=st.none() | st.integers(0, 20),
)
LOGPROBS = st.lists(st.tuples(TOKEN_IDS, FLOATS), min_size=1, max_size=21).map(
    lambda pairs: Logprobs(tuple(i for i, _ in pairs), tuple(v for _, v in pairs))
)


@given(params=PARAMS)
def test_sampling_survives_the_wire(params: SamplingParams) -> None:
    wire = convert.sampling_to_proto(params).SerializeToString()
    assert convert.sampling_from_proto(sampling_pb2.SamplingParams.FromString(wire)) == params


def test_a_second_trip_changes_nothing() -> None:
    once = convert.sampling_from_proto(convert.sampling_to_proto(SamplingParams(max_tokens=1, temperature=0.7)))
    assert once.temperature == struct.unpack("f", struct.pack("f", 0.7))[0]
    assert convert.sampling_from_proto(convert.sampling_to_proto(once)) == once


def test_every_parameter_has_a_field() -> None:
    names = {field.name for field in sampling_pb2.SamplingParams.DESCRIPTOR.fields}
    assert names == set(SamplingParams.__dataclass_fields__)


@pytest.mark.parametrize("num_logprobs", [None, 0, 5])
def test_no_logprobs_and_zero_logprobs_are_told_apart(num_logprobs: int | None) -> None:
    params = SamplingParams(max_tokens=1, num_logprobs=num_logprobs)
    assert convert.sampling_from_proto(convert.sampling_to_proto(params)).num_logprobs == num_logprobs


@given(logprobs=LOGPROBS)
def test_logprobs_survive_the_wire(logprobs: Logprobs) -> None:
    assert convert.logprobs_from_proto(convert.logprobs_to_proto(logprobs)) == logprobs


def test_logprobs_that_were_not_asked_for_stay_none() -> None:
    assert convert.logprobs_from_proto(sampling_pb2.Logprobs()) is None


@pytest.mark.parametrize("finish", [None, *FinishReason])
def test_every_finish_reason_survives_the_wire(finish: FinishReason | None) -> None:
    assert convert.finish_from_proto(convert.finish_to_proto(finish)) is finish


def test_a_failure_arrives_as_its_error() -> None:
    error = convert.error_from_proto(decode_pb2.Error(code="overloaded", message="the queue is full"))
    assert (type(error), error.message) == (errors.Overloaded, "the queue is full")
