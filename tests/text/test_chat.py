import pytest

from gemline.errors import InvalidRequest
from gemline.text.chat import SystemPrompt, Turn, gemma_turns

_USER, _MODEL, _SYSTEM = Turn("user", "hello"), Turn("model", "hi"), Turn("system", "be kind")


def _refusal(turns: list[Turn], system_prompt: SystemPrompt = "refuse") -> str:
    with pytest.raises(InvalidRequest) as caught:
        gemma_turns(turns, system_prompt)
    assert caught.value.param == "messages"
    return caught.value.message


def test_user_and_model_alternate() -> None:
    assert gemma_turns([_USER, _MODEL, _USER]) == (_USER, _MODEL, _USER)


def test_white_space_around_a_content_is_cut_off() -> None:
    assert gemma_turns([Turn("user", "\n\t a b \n")]) == (Turn("user", "a b"),)


def test_an_empty_conversation_is_refused() -> None:
    assert "messages is empty" in _refusal([])


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([_MODEL], "messages[0] has role 'assistant': 'user' must stand there"),
        ([_USER, _USER], "messages[1] has role 'user': 'assistant' must stand there"),
        ([_USER, _MODEL, _MODEL], "messages[2] has role 'assistant': 'user' must stand there"),
        ([_USER, _MODEL], "messages[1] has role 'assistant': the user must speak last"),
        ([_USER, Turn("tool", "42")], "messages[1] has role 'tool': it must be user, assistant or system"),
        ([Turn("x" * 9999, "")], f"messages[0] has role '{'x' * 32}': it must be"),
    ],
)
def test_a_turn_out_of_order_is_named_with_the_role_that_must_stand_there(turns: list[Turn], message: str) -> None:
    assert _refusal(turns).startswith(message)


def test_a_system_turn_is_refused_by_default() -> None:
    assert _refusal([_SYSTEM, _USER]).startswith("messages[0] has role 'system': Gemma 2 has no such role")
    assert _refusal([_USER, _SYSTEM]).startswith("messages[1] has role 'system': Gemma 2 has no such role")


def test_a_system_turn_is_put_before_the_first_user_turn_where_the_operator_lets_it() -> None:
    assert gemma_turns([_SYSTEM, _USER, _MODEL, _USER], "prepend") == (
        Turn("user", "be kind\n\nhello"),
        _MODEL,
        _USER,
    )


def test_an_empty_system_turn_adds_nothing() -> None:
    assert gemma_turns([Turn("system", " "), _USER], "prepend") == (_USER,)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([_SYSTEM], "messages[0] has role 'system': a user message must follow it"),
        ([_SYSTEM, _MODEL], "messages[0] has role 'system': a user message must follow it"),
        (
            [_SYSTEM, _SYSTEM, _USER],
            "messages[1] has role 'system': only a conversation's first may have it",
        ),
        ([_USER, _SYSTEM], "messages[1] has role 'system': only a conversation's first may have it"),
        ([_SYSTEM, _USER, _USER], "messages[2] has role 'user': 'assistant' must stand there"),
        ([_SYSTEM, _USER, _MODEL], "messages[2] has role 'assistant': the user must speak last"),
    ],
)
def test_a_system_turn_in_the_wrong_place_is_refused_even_then(turns: list[Turn], message: str) -> None:
    assert _refusal(turns, "prepend").startswith(message)
