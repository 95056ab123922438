"""The oracle: transformers' own class over the same tokenizer.json, with Gemma 2's published chat template."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from gemline.demo.tokenizer import build_tokenizer
from gemline.text.chat import Turn
from gemline.text.tokenizer import Tokenizer

# What the template of gemma-2-*-it does, in words of our own; its refusals are tested in test_chat.py.
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_BACKEND = build_tokenizer()
_OURS = Tokenizer.load(_BACKEND.to_str().encode())
_THEIRS = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
    tokenizer_object=_BACKEND, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", chat_template=_TEMPLATE
)
_WORDS = [
    "the",
    " model",
    "  ",
    "\n",
    "\n\n\n",
    "<table>",
    "</em>",
    "<unused7>",
    "<mask>",
    "字",
    "😀",
    "🎉",
    "\t",
    "é",
    "<0x41>",
]
_TEXT = st.lists(st.one_of(st.sampled_from(_WORDS), st.text(max_size=4)), max_size=12).map("".join)
_CONVERSATION = st.lists(_TEXT, min_size=1, max_size=5).filter(lambda contents: len(contents) % 2 == 1)


@given(_TEXT)
def test_a_prompt_gets_the_ids_that_transformers_gives(text: str) -> None:
    assert _OURS.encode_prompt(text) == _THEIRS(text).input_ids


@pytest.mark.parametrize(
    "token", ["<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<mask>", "<unused98>"]
)
def test_a_control_token_in_a_prompt_gets_the_ids_that_transformers_gives(token: str) -> None:
    text = f"one {token}two {token} \n{token}{token}"
    assert _OURS.encode_prompt(text) == _THEIRS(text).input_ids


@given(_CONVERSATION)
def test_a_conversation_gets_the_ids_that_transformers_gives(contents: list[str]) -> None:
    turns = [Turn("model" if index % 2 else "user", content) for index, content in enumerate(contents)]
    messages = [{"role": "assistant" if turn.role == "model" else "user", "content": turn.content} for turn in turns]
    theirs = _THEIRS.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert _OURS.encode_chat(turns) == theirs


@given(_TEXT)
def test_a_text_is_decoded_as_transformers_does(text: str) -> None:
    ids = _OURS.encode_prompt(text)
    assert _OURS.decode(ids) == _THEIRS.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert _OURS.decode(ids, keep_control=True) == _THEIRS.decode(ids, clean_up_tokenization_spaces=False)
