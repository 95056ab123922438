"""The least time that a decode step can take: its bytes at some bandwidth, or its operations at some rate.

Weights, head and attention come one after the other, each waiting for what it needs more of. Launches, activations,
sampling and the host take nothing here.
"""

from dataclasses import dataclass

from support.published import Model

# Bytes of a weight, of one of the embedding, which is never coarser than int8. Of int4, a scale for 128 of them.
_WEIGHT_BYTES = {"none": (2.0, 2.0), "int8": (1.0, 1.0), "fp8": (1.0, 1.0), "int4": (0.5 + 2 / 128, 1.0)}


@dataclass(frozen=True)
class Step:
    """`num_sequences` sequences of `context` positions each, the new one included."""

    model: Model
    quantization: str
    num_sequences: int
    context: int
    cache_bytes: int = 2  # of a number in the cache

    @property
    def num_linear(self) -> int:
        """Weights of all layers' matrices."""
        model = self.model
        projections = model.width * model.head_dim * (model.num_parts + model.num_heads)
        return model.num_layers * (projections + 3 * model.width * model.inner)

    @property
    def positions(self) -> int:
        """That one sequence's queries see, over all layers."""
        model = self.model
        windows = [model.window_of(layer) for layer in range(model.num_layers)]
        return sum(min(self.context, window or self.context) for window in windows)

    def floor_s(self, bytes_per_s: float, flops_per_s: float) -> float:
        """Seconds."""
        model, batch = self.model, self.num_sequences
        weight_bytes, head_bytes = _WEIGHT_BYTES[self.quantization]
        num_norms, num_head = (4 * model.num_layers + 1) * model.width, model.vocab_size * model.width

        def least(num_bytes: float, num_operations: float) -> float:
            return max(num_bytes / bytes_per_s, num_operations / flops_per_s)

        layers = least(self.num_linear * weight_bytes + 2 * num_norms, 2 * batch * self.num_linear)
        head = least(num_head * head_bytes, 2 * batch * num_head)
        read = batch * self.positions * 2 * model.num_groups * model.head_dim * self.cache_bytes
        attention = least(read, 4 * batch * self.positions * model.num_heads * model.head_dim)
        return layers + head + attention
