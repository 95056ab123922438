"""A checkpoint folder: could a worker serve it. Reads headers and maps files; computes nothing."""

from pathlib import Path

from gemline.cli.checks.check import Check, attempt, ok, warning

# Of a weight; where two would do, the one that takes more.
_ITEM_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.6}
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
    from gemline.engine.checkpoint import revision
    from gemline.engine.config import Gemma2Config
    from gemline.engine.memory import free_memory_bytes
    from gemline.engine.weights import load_weights

    weights = load_weights(model_dir, Gemma2Config.load(model_dir))
    num_parameters = weights.num_parameters
    dtypes = sorted(str(dtype).removeprefix("torch.") for dtype in weights.stored_dtypes)
    found = f"{num_parameters / 1e6:.1f} M parameters, {' '.join(dtypes)}, revision {revision(model_dir)[:12]}"
    free_bytes = free_memory_bytes()
    too_large = [name for name, item_bytes in _ITEM_BYTES.items() if num_parameters * item_bytes > free_bytes]
    if too_large:
        free = f"{free_bytes / 2**30:.1f} GiB are free: too little for {', '.join(too_large)}"
        return warning("weights", found, f"{free}; see --dtype and --quantization")
    return ok("weights", found)


def _tokenizer(model_dir: Path) -> Check:
    from gemline.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(model_dir)
    return ok("tokenizer.json", f"{tokenizer.vocab_size} tokens, sha256 {tokenizer.sha256[:12]}")
