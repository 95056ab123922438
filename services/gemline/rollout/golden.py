"""The golden self-check: a fixed prompt, answered greedily by a decode worker itself, beside any gateway."""

import asyncio

from gemline.cluster.records import WorkerRecord
from gemline.engine.params import SamplingParams
from gemline.errors import DeadlineExceeded
from gemline.gateway.link import DecodeLink
from gemline.internal.v1 import decode_pb2
from gemline.rpc.convert import sampling_to_proto
from gemline.rpc.options import OpenChannel

NUM_PROMPT_TOKENS = 24
NUM_ANSWER_TOKENS = 16
TIMEOUT_S = 60.0
_SILENCE_S = 30.0
_BOS = 2


def prompt(vocab_size: int) -> list[int]:
    """The same for every model of that size: ids from all over the vocabulary."""
    return [_BOS, *((number * 7919 + 11) % vocab_size for number in range(1, NUM_PROMPT_TOKENS))]


async def answer(record: WorkerRecord, open_channel: OpenChannel, timeout_s: float = TIMEOUT_S) -> list[int]:
    """Token ids of the worker's greedy answer, stop tokens passed over.

    Raises DeadlineExceeded, and what the worker says of the request.
    """
    sampling = SamplingParams(max_tokens=NUM_ANSWER_TOKENS, temperature=0.0)
    token_ids = prompt(record.model.vocab_size)
    submit = decode_pb2.Submit(
        request_id="golden",
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        sampling=sampling_to_proto(sampling),
    )
    link = DecodeLink(record, "rollout", open_channel, _SILENCE_S)
    given: list[int] = []
    try:
        async with asyncio.timeout(timeout_s):
            await link.wait_standing()
            inbox, finish = link.submit(submit), None
            while finish is None:
                delivery = await inbox.take()
                given, finish = given + delivery.token_ids, delivery.finish
    except TimeoutError:
        raise DeadlineExceeded(
            f"worker {record.worker_id} at {record.address} gave {len(given)} of {NUM_ANSWER_TOKENS} golden tokens"
            f" within {timeout_s:g} s"
        ) from None
    finally:
        await link.stop()
    return given
