"""How large the demo models are, and how long each is trained. Plain data."""

from typing import Any, NamedTuple

from recipe.vocabulary import VOCAB_SIZE

_GEMMA = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "vocab_size": VOCAB_SIZE,
    "sliding_window": 256,
    "max_position_embeddings": 2048,
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def _config(hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return _GEMMA | {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
    }


STUDENT = _config(256, 640, 6, 4, 2)  # 5.2 M parameters, 10.4 MB in bfloat16
TEACHER = _config(384, 1024, 6, 6, 2)  # 11.0 M


class Stage(NamedTuple):
    """One training. `teacher` names the stage whose model teaches."""

    name: str
    config: dict[str, Any]
    seed: int
    num_tokens: int
    teacher: str | None = None


_OF_TEACHER, _OF_STUDENT = 2_400_000, 800_000  # tokens: what two cores can do in two hours

# "first" is a student that is there early: it shows whether the data teaches what it should. Its data changed on the
# way (sums as drills came in after 1.7 million tokens, more copying after 3.2 million), and its end was moved twice
# (after 7.1 and, when "Ada" came in, 8 million), so it is no part of the comparison, in which both students of a seed
# see the same examples in the same order.
STAGES = (
    Stage("first", STUDENT, 0, 8_600_000),
    Stage("teacher", TEACHER, 100, _OF_TEACHER),
    Stage("distilled-0", STUDENT, 0, _OF_STUDENT, "teacher"),
    Stage("plain-0", STUDENT, 0, _OF_STUDENT),
    Stage("distilled-1", STUDENT, 1, _OF_STUDENT, "teacher"),
    Stage("plain-1", STUDENT, 1, _OF_STUDENT),
    Stage("distilled-2", STUDENT, 2, _OF_STUDENT, "teacher"),
    Stage("plain-2", STUDENT, 2, _OF_STUDENT),
)
