"""From config.json's quantization_config to a layout, or the reason why it is none that we read. Knows no torch.

Which modules are quantised is not asked here: their tensors say it, and lists like `ignore` have several spellings.
"""

from typing import Any

from gemline.engine.json_fields import JsonFields
from gemline.engine.layout import Form, Layout

_MOST = 2**24
_READ = "compressed-tensors, gptq and awq are read"
_WORDS, _INTEGERS, _FLOATS = "pack-quantized", "int-quantized", "float-quantized"
_SCHEME = "kv_cache_scheme"
_PLAIN = "dense"  # weights as they are


def read_layout(config: JsonFields) -> Layout | None:
    """None without a quantization_config. Raises CheckpointError, which names file, key and value, for what we do not
    read.
    """
    if "quantization_config" not in config:
        return None
    fields = config.section("quantization_config")
    match fields.text("quant_method", "").lower():
        case "compressed-tensors":
            return _compressed_tensors(fields)
        case "gptq":
            return _gptq(fields)
        case "awq":
            return _awq(fields)
    raise fields.fail("quant_method", f"{_READ}, this is {fields.raw('quant_method')!r:.80}")


def read_kv_scheme(config: JsonFields) -> bool:
    """Whether there are scales for keys and values in fp8, one for each layer's keys and one for its values.

    Raises CheckpointError as `read_layout` does, for scales that are anything else.
    """
    fields = config.section("quantization_config")
    if fields.text("quant_method", "").lower() != "compressed-tensors" or not fields.raw(_SCHEME):
        return False
    scheme = fields.section(_SCHEME)
    if (kind := scheme.text("type", "int")) != "float":
        raise scheme.fail("type", f"must be 'float', is {kind!r:.80}")
    if (bits := scheme.integer("num_bits", 8, 1, 33)) != 8:
        raise scheme.fail("num_bits", f"must be 8, is {bits}")
    if (strategy := scheme.text("strategy", _default_strategy(scheme))) != "tensor":
        raise scheme.fail("strategy", f"must be 'tensor', is {strategy!r:.80}")
    if dynamic := scheme.raw("dynamic"):
        raise scheme.fail("dynamic", f"must be false, as scales are stored, is {dynamic!r:.80}")
    if not scheme.flag("symmetric", True):
        raise scheme.fail("symmetric", "must be true of float values")
    return True


def _gptq(fields: JsonFields) -> Layout:
    _four_bits(fields, "bits")
    stored = fields.text("checkpoint_format", fields.text("format", "gptq")).lower()
    if stored not in ("gptq", "gptq_v2") or fields.flag("is_marlin_format", False):
        raise fields.fail("checkpoint_format", f"must be 'gptq' or 'gptq_v2', is {stored!r:.80}")
    return Layout(
        Form.GPTQ,
        4,
        _group_size(fields, "group_size"),
        # Rules for single modules may differ in this; what else they may change shows in the tensors.
        is_symmetric=fields.flag("sym", False) and "dynamic" not in fields,
        is_ordered=fields.flag("desc_act", False),
        zero_offset=1 if stored == "gptq" else 0,
    )


def _awq(fields: JsonFields) -> Layout:
    _four_bits(fields, "bits" if "bits" in fields else "w_bit")
    if (version := fields.text("version", "gemm").lower()) != "gemm":
        raise fields.fail("version", f"must be 'gemm', is {version!r:.80}")
    if not fields.flag("zero_point", True):
        raise fields.fail("zero_point", "must be true")
    return Layout(
        Form.AWQ,
        4,
        _group_size(fields, "group_size" if "group_size" in fields else "q_group_size"),
        is_symmetric=False,
    )


def _compressed_tensors(fields: JsonFields) -> Layout | None:
    stored = fields.text("format", "")
    if stored == _PLAIN and fields.raw(_SCHEME) and not fields.raw("config_groups"):
        return None
    if stored not in (_WORDS, _INTEGERS, _FLOATS):
        raise fields.fail("format", f"must be one of {_WORDS}, {_INTEGERS}, {_FLOATS}, is {stored!r:.80}")
    if (status := fields.text("quantization_status", "compressed")) != "compressed":
        raise fields.fail("quantization_status", f"must be 'compressed', is {status!r:.80}")
    if (sparsity := fields.section("sparsity_config").text("format", "dense")) != "dense":
        raise fields.fail("sparsity_config.format", f"must be 'dense', is {sparsity!r:.80}")
    if fields.raw("transform_config"):
        raise fields.fail("transform_config", f"is not supported, is {fields.raw('transform_config')!r:.80}")
    return _scheme(fields, stored)


def _scheme(fields: JsonFields, stored: str) -> Layout:
    """That of all groups: what is the same for every module is all that we read."""
    groups = fields.section("config_groups")
    layouts = {}
    for name in groups.as_dict():
        group = groups.section(name)
        if (own := group.text("format", stored)) != stored:
            raise group.fail("format", f"must be {stored!r} as in all of the file, is {own!r:.80}")
        layouts[name] = _weights(group.section("weights"), stored)
    if len(set(layouts.values())) != 1:
        told = "; ".join(f"{name}: {layout}" for name, layout in layouts.items())
        raise fields.fail("config_groups", f"must give one form of weights, gives {told or 'none'}")
    return next(iter(layouts.values()))


def _weights(fields: JsonFields, stored: str) -> Layout:
    is_float = stored == _FLOATS
    if (kind := fields.text("type", "int")) != ("float" if is_float else "int"):
        raise fields.fail("type", f"does not go with the format {stored!r}, is {kind!r:.80}")
    bits = fields.integer("num_bits", 8, 1, 33)
    if bits not in ((4, 8) if stored == _WORDS else (8,)):
        raise fields.fail("num_bits", f"must be {'4 or 8' if stored == _WORDS else '8'} in {stored!r}, is {bits}")
    strategy = fields.text("strategy", _default_strategy(fields))
    if strategy not in (("channel", "group") if stored == _WORDS else ("channel", "group", "tensor")):
        raise fields.fail("strategy", f"is not supported in {stored!r}: {strategy!r:.80}")
    if not (is_symmetric := fields.flag("symmetric", True)) and is_float:
        raise fields.fail("symmetric", "must be true of float values")
    return Layout(
        Form.WORDS if stored == _WORDS else Form.BYTES,
        bits,
        _group_size(fields, "group_size") if strategy == "group" else None,
        is_symmetric,
        is_float=is_float,
        has_one_scale=strategy == "tensor",
        is_ordered=_is_ordered(fields) and strategy == "group",
    )


def _default_strategy(fields: JsonFields) -> str:
    size: Any = fields.raw("group_size")
    return "tensor" if size is None else "channel" if size == -1 else "group"


def _is_ordered(fields: JsonFields) -> bool:
    """actorder "weight" orders the search for values alone, not what is stored."""
    order = fields.raw("actorder")
    if order not in (None, False, True, "group", "dynamic", "weight", "static"):
        raise fields.fail("actorder", f"must be one of group, weight, is {order!r:.80}")
    return order in (True, "group", "dynamic")


def _four_bits(fields: JsonFields, key: str) -> None:
    if (bits := fields.integer(key, 0, 0, _MOST)) != 4:
        raise fields.fail(key, f"must be 4, is {bits}")


def _group_size(fields: JsonFields, key: str) -> int | None:
    """None for -1."""
    size = fields.integer(key, 128 if key == "q_group_size" else 0, -1, _MOST)
    if size == 0:
        raise fields.fail(key, "must be -1 or over 0")
    return None if size == -1 else size
