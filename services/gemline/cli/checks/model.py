"""A checkpoint folder: could a worker serve it. Reads headers and maps files; computes nothing."""

from pathlib import Path

from gemline.cli.checks.check import Check, attempt, ok, warning

_ADVICE = "a folder of a Gemma2ForCausalLM with config.json, tokenizer.json and safetensors is wanted"


def checks(model_dir: Path) -> list[Check]:
    """Every finding about the checkpoint."""
    return [
        attempt("config.json", lambda: _config(model_dir), _ADVICE),
        attempt("weights", lambda: _weights(model_dir), _ADVICE),
        attempt("tokenizer.json", lambda: _tokenizer(model_dir), _ADVICE),
    ]


def _config(model_dir: Path) -> Check:
    from gemline.engine.config import Gemma2Config

    config = Gemma2Config.load(model_dir)
    layers = f"{config.num_local_layers} local + {config.num_global_layers} global layers"
    return ok("config.json", f"{layers}, context {config.max_position_embeddings}, window {config.sliding_window}")


def _weights(model_dir: Path) -> Check:
    from gemline.engine.checkpoint import load_weights, revision
    from gemline.engine.config import Gemma2Config
    from gemline.engine.memory import free_memory_bytes

    weights = load_weights(model_dir, Gemma2Config.load(model_dir))
    num_parameters = sum(tensor.numel() for tensor in weights.values())
    num_bytes = num_parameters * 4
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()})
    found = f"{num_parameters / 1e6:.1f} M parameters, {' '.join(dtypes)}, revision {revision(model_dir)[:12]}"
    if num_bytes > free_memory_bytes():
        return warning(
            "weights", found, f"float32 takes {num_bytes / 2**30:.1f} GiB, more than is free: --dtype bfloat16"
        )
    return ok("weights", found)


def _tokenizer(model_dir: Path) -> Check:
    from gemline.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(model_dir)
    return ok("tokenizer.json", f"{tokenizer.vocab_size} tokens, sha256 {tokenizer.sha256[:12]}")
