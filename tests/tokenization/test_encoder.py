import asyncio

import pytest

from gemline.demo.tokenizer import build_tokenizer
from gemline.errors import InvalidRequest, RequestTooLarge
from gemline.text.chat import Turn
from gemline.text.tokenizer import Tokenizer
from gemline.tokenization.encoder import MAX_TEXT_BYTES, Encoder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(build_tokenizer().to_str().encode())


async def test_a_short_text_and_a_long_one_are_encoded_alike(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer)
    for text in ("the user 字", "the user 字 " * 2_000):
        assert await encoder.encode_prompt(text) == tokenizer.encode_prompt(text)
        assert await encoder.encode_chat([Turn("user", text)]) == tokenizer.encode_chat([Turn("user", text)])


async def test_a_long_text_does_not_hold_up_the_event_loop(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer)
    encoding = asyncio.create_task(encoder.encode_prompt("what is the answer " * 50_000))
    ticks = 0
    while not encoding.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert ticks >= 5


async def test_it_counts_what_it_is_busy_with_and_knows_when_it_is_idle(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer)
    await encoder.wait_idle()
    tasks = [asyncio.create_task(encoder.encode_prompt("the model " * 5_000)) for _ in range(2)]
    await asyncio.sleep(0)
    assert encoder.num_running == 2
    await encoder.wait_idle()
    assert encoder.num_running == 0
    await asyncio.gather(*tasks)


async def test_a_text_at_the_limit_is_taken_and_one_byte_more_is_refused_with_both_numbers(
    tokenizer: Tokenizer,
) -> None:
    encoder = Encoder(tokenizer, max_text_bytes=6)
    assert await encoder.encode_prompt("字字") == tokenizer.encode_prompt("字字")
    with pytest.raises(RequestTooLarge, match="prompt holds 7 bytes of text; the limit is 6") as caught:
        await encoder.encode_prompt("字字a")
    assert caught.value.param == "prompt"


async def test_the_limit_counts_all_turns_together(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer, max_text_bytes=6)
    turns = [Turn("user", "abc"), Turn("model", "abc"), Turn("user", "d")]
    with pytest.raises(RequestTooLarge, match="messages holds 7 bytes of text; the limit is 6") as caught:
        await encoder.encode_chat(turns)
    assert caught.value.param == "messages"


async def test_the_limit_is_four_mebibytes_by_default(tokenizer: Tokenizer) -> None:
    assert MAX_TEXT_BYTES == 4 * 2**20
    with pytest.raises(RequestTooLarge):
        await Encoder(tokenizer).encode_prompt("a" * (MAX_TEXT_BYTES + 1))


async def test_the_system_policy_decides_about_a_system_turn(tokenizer: Tokenizer) -> None:
    turns = [Turn("system", "be kind"), Turn("user", "hello")]
    with pytest.raises(InvalidRequest, match="Gemma 2 has no such role"):
        await Encoder(tokenizer).encode_chat(turns)
    merged = await Encoder(tokenizer, "prepend").encode_chat(turns)
    assert merged == tokenizer.encode_chat([Turn("user", "be kind\n\nhello")])


async def test_a_failure_leaves_it_idle(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer)
    with pytest.raises(InvalidRequest):
        await encoder.encode_chat([Turn("model", "a" * 10_000)])
    assert encoder.num_running == 0
    await encoder.wait_idle()


async def test_turns_that_continue_a_conversation_are_encoded_as_its_rest(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer, "prepend", max_text_bytes=20_000)
    for text in ("hello 字", "hello 字 " * 1_000):
        turns = [Turn("user", text)]
        assert await encoder.encode_chat(turns, continues=True) == tokenizer.encode_further(turns)
    with pytest.raises(InvalidRequest, match="only a conversation's first"):
        await encoder.encode_chat([Turn("system", "be kind"), *turns], continues=True)
    with pytest.raises(RequestTooLarge):
        await encoder.encode_chat([Turn("user", "a" * 20_001)], continues=True)
