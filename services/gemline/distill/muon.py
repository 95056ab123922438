"""The optimiser: Muon for the layers' matrices, Adam for embeddings and norms. Knows no model but its tensors' names.

Muon (Jordan and others, 2024) replaces a matrix's momentum by the nearest matrix whose singular values are all about 1,
found by five steps of a Newton-Schulz iteration: every direction learns as fast as the strongest.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_MOMENTUM = 0.95
_ADAM_BETAS, _ADAM_EPS = (0.9, 0.98), 1e-10


class Rates(NamedTuple):
    """Learning rates at their height. `matrices` moves a matrix's entries by about that much of 0.2 a step."""

    matrices: float = 0.02
    embeddings: float = 0.003
    norms: float = 0.003


class Optimizer:
    """Updates `weights` in place from their gradients, and keeps its own state, which can be saved."""

    def __init__(self, weights: Mapping[str, torch.Tensor], rates: Rates) -> None:
        self._weights = weights
        self._rates = rates
        self._num_steps = 0
        self._first = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        self._second = {name: torch.zeros_like(weights[name]) for name in weights if not _is_matrix(name, weights)}

    @torch.no_grad()
    def step(self, share: float) -> None:
        """One update with `share` of the full learning rates; clears the gradients."""
        self._num_steps += 1
        by_shape: dict[torch.Size, dict[str, torch.Tensor]] = defaultdict(dict)  # gradients by name
        for name, tensor in self._weights.items():
            if tensor.grad is None:
                continue
            if name in self._second:
                self._adam(name, tensor, tensor.grad, share)
            else:
                by_shape[tensor.shape][name] = tensor.grad
        for gradients in by_shape.values():
            self._muon(gradients, share)
        for tensor in self._weights.values():
            tensor.grad = None

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on where this one is."""
        return {"num_steps": self._num_steps, "first": self._first, "second": self._second}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._num_steps = state["num_steps"]
        for ours, saved in ((self._first, state["first"]), (self._second, state["second"])):
            for name, tensor in ours.items():
                tensor.copy_(saved[name])

    def _adam(self, name: str, tensor: torch.Tensor, gradient: torch.Tensor, share: float) -> None:
        rate = self._rates.norms if tensor.ndim == 1 else self._rates.embeddings
        decay_first, decay_second = _ADAM_BETAS
        first, second = self._first[name], self._second[name]
        first.lerp_(gradient, 1 - decay_first)
        second.lerp_(gradient.square(), 1 - decay_second)
        first_bias, second_bias = 1 - decay_first**self._num_steps, 1 - decay_second**self._num_steps
        tensor.addcdiv_(first, (second / second_bias).sqrt_().add_(_ADAM_EPS), value=-rate * share / first_bias)

    def _muon(self, gradients: Mapping[str, torch.Tensor], share: float) -> None:
        """Matrices of one shape together, for the iteration is a batch of products."""
        updates = []
        for name, gradient in gradients.items():
            momentum = self._first[name].lerp_(gradient, 1 - _MOMENTUM)
            updates.append(gradient.lerp(momentum, _MOMENTUM))
        rows, columns = updates[0].shape
        size = max(1.0, rows / columns) ** 0.5
        for name, update in zip(gradients, orthogonal(torch.stack(updates)), strict=True):
            self._weights[name].add_(update, alpha=-self._rates.matrices * share * size)


def orthogonal(matrices_LRC: torch.Tensor) -> torch.Tensor:
    """For each matrix U S V^T about U V^T: singular values between 0.7 and 1.2."""
    tall = matrices_LRC.shape[-2] > matrices_LRC.shape[-1]
    wide = matrices_LRC.transpose(-1, -2) if tall else matrices_LRC
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    first, third, fifth = _NEWTON_SCHULZ
    for _ in range(_NUM_ITERATIONS):
        square = wide @ wide.transpose(-1, -2)
        wide = first * wide + torch.baddbmm(third * square, square, square, alpha=fifth) @ wide
    found: torch.Tensor = wide.transpose(-1, -2) if tall else wide
    return found


def _is_matrix(name: str, weights: Mapping[str, torch.Tensor]) -> bool:
    return weights[name].ndim == 2 and ".layers." in name
