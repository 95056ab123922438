"""What config.json says of every checkpoint that tests and benches write, beside its sizes. Plain data."""

from collections.abc import Mapping
from typing import Any

PAD, EOS, BOS, END_OF_TURN = 0, 1, 2, 107


def config_values(sizes: Mapping[str, int]) -> dict[str, Any]:
    """config.json as transformers writes it for Gemma 2; `sizes` are under its names."""
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        **sizes,
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": BOS,
        "torch_dtype": "bfloat16",
    }
