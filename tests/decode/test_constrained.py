"""Constrained answers of real workers: colocated or split, moved or not, beside others that hurt."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.grammars import demo_tokenizer, regex_of, schema_of
from support.hand_gateway import Answer, HandGateway, attached
from support.workers import hosted, measure, measuring

from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.engine.options import EngineOptions
from gemline.engine.params import SamplingParams
from gemline.internal.v1 import decode_pb2, sampling_pb2
from gemline.prefill.worker import PrefillOptions, PrefillWorker
from gemline.rpc.convert import sampling_to_proto

ENGINE = EngineOptions(num_kv_blocks=64, max_batch_tokens=24, max_running=8, max_waiting=64, num_threads=1)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
PROMPT = [2, *(300 + 7 * i % 400 for i in range(1, 40))]
STOPS = frozenset({1, 107})
DRAWN = SamplingParams(200, seed=11, stop_token_ids=STOPS, constraint=schema_of(json.dumps(SCHEMA)), num_logprobs=1)


@pytest.fixture
async def gateway(tiny_checkpoint: Path, redis_url: str) -> AsyncIterator[HandGateway]:
    options = DecodeOptions(tiny_checkpoint, "tiny", ENGINE, prefill="never")
    async with (
        hosted(DecodeWorker(options), redis_url, measuring()) as record,
        attached(record.address, record.epoch) as gateway,
    ):
        yield gateway


def value_of(answer: Answer) -> object:
    assert answer.error == ""
    assert answer.finish == sampling_pb2.FINISH_REASON_STOP
    return json.loads(demo_tokenizer().decode(answer.token_ids))


async def test_a_model_of_random_weights_answers_with_valid_json_and_one_logprob_a_token(gateway: HandGateway) -> None:
    for handle in range(1, 9):
        answer = await gateway.generate(handle, PROMPT, replace(DRAWN, seed=handle, temperature=handle / 8))
        jsonschema.validate(value_of(answer), SCHEMA)
        assert len(answer.logprobs) == len(answer.token_ids)


async def test_split_and_colocated_give_equal_answers_from_the_first_token_on(
    gateway: HandGateway, tiny_checkpoint: Path, redis_url: str
) -> None:
    decode = measuring()
    decoding = DecodeWorker(DecodeOptions(tiny_checkpoint, "tiny", ENGINE, "always"))
    async with (
        hosted(PrefillWorker(PrefillOptions(tiny_checkpoint, "tiny", ENGINE)), redis_url, measuring()),
        hosted(decoding, redis_url, decode) as record,
        attached(record.address, record.epoch) as split,
    ):
        for seed in range(1, 5):
            here = await gateway.generate(seed, PROMPT, replace(DRAWN, seed=seed))
            there = await split.generate(seed, PROMPT, replace(DRAWN, seed=seed))
            assert there.token_ids == here.token_ids
            jsonschema.validate(value_of(there), SCHEMA)
        assert measure(decode, "gemline_prefills_total", where="remote") == 4


async def test_an_answer_that_is_taken_over_in_the_midst_of_a_value_goes_on_as_it_would_have(
    gateway: HandGateway,
) -> None:
    whole = await gateway.generate(100, PROMPT, DRAWN)
    for num in range(1, len(whole.token_ids)):
        answer = gateway.answers[num] = Answer()
        submit = decode_pb2.Submit(
            handle=num,
            token_ids=[*PROMPT, *whole.token_ids[:num]],
            num_prompt_tokens=len(PROMPT),
            sampling=sampling_to_proto(DRAWN),
        )
        await gateway._write(decode_pb2.AttachRequest(submit=submit))
        await asyncio.wait_for(answer.ended.wait(), 30)
        assert answer.token_ids == whole.token_ids[num:]


@pytest.mark.parametrize("regex", ["(ab", "x(a{1000}){1000}", "(?=a)b", "a" * 70_000])
async def test_a_hostile_constraint_fails_alone_and_a_neighbour_streams_on(gateway: HandGateway, regex: str) -> None:
    neighbour = await gateway.submit(1, PROMPT, SamplingParams(100, temperature=0.0))
    await neighbour.first.wait()
    hostile = await gateway.generate(2, PROMPT, replace(DRAWN, constraint=regex_of(regex), num_logprobs=None))
    assert hostile.error.startswith("invalid_request")
    await asyncio.wait_for(neighbour.ended.wait(), 60)
    assert len(neighbour.token_ids) == 100
    assert neighbour.error == ""


async def test_generated_tokens_that_break_the_constraint_are_refused(gateway: HandGateway) -> None:
    answer = gateway.answers[1] = Answer()
    submit = decode_pb2.Submit(
        handle=1, token_ids=[*PROMPT, 400, 401], num_prompt_tokens=len(PROMPT), sampling=sampling_to_proto(DRAWN)
    )
    await gateway._write(decode_pb2.AttachRequest(submit=submit))
    await asyncio.wait_for(answer.ended.wait(), 30)
    assert answer.error.startswith("invalid_request")


async def test_a_constraint_of_a_kind_that_is_not_known_fails_its_request_alone(gateway: HandGateway) -> None:
    answer = gateway.answers[1] = Answer()
    sampling = sampling_to_proto(DRAWN)
    of_a_later_release: Any = 77
    sampling.constraint.syntax = of_a_later_release
    submit = decode_pb2.Submit(handle=1, token_ids=PROMPT, num_prompt_tokens=len(PROMPT), sampling=sampling)
    await gateway._write(decode_pb2.AttachRequest(submit=submit))
    await asyncio.wait_for(answer.ended.wait(), 30)
    assert answer.error.startswith("invalid_request")
    assert (await gateway.generate(2, PROMPT, SamplingParams(2, temperature=0.0))).error == ""
