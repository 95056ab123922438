"""The training loop: batch, loss, step, and now and then a snapshot. Knows no text and no command line."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gemline.distill.examples import Batcher
from gemline.distill.muon import Optimizer, Rates
from gemline.distill.network import Network
from gemline.distill.objective import Mix, losses
from gemline.distill.snapshots import load_snapshot, save_snapshot
from gemline.errors import ConfigurationError

_SMOOTHING = 0.98


class Plan(NamedTuple):
    """How long and how fast. Tokens are positions computed, padding included."""

    num_tokens: int
    tokens_per_batch: int = 4096
    warmup_share: float = 0.02
    decay_share: float = 0.35  # of all tokens: the last part, in which rates fall linearly to 0
    rates: Rates = Rates()
    mix: Mix = Mix()
    snapshot_every_s: float = 300.0


class Progress(NamedTuple):
    """One step done. Losses are smoothed, in nats a learned token."""

    step: int
    num_tokens: int
    of_tokens: int
    cross_entropy: float
    divergence: float
    tokens_per_s: float


class Training:
    """A student on its way. What it has learned is in `student.weights`; `directory` holds its snapshots."""

    def __init__(
        self, directory: Path, student: Network, batcher: Batcher, plan: Plan, teacher: Network | None = None
    ) -> None:
        self._directory = directory
        self._student = student
        self._teacher = teacher
        self._batcher = batcher
        self._plan = plan
        self._optimizer = Optimizer(student.weights, plan.rates)
        self._step = 0
        self._num_tokens = 0
        self._means: tuple[float, float] | None = None
        self._resume()

    def run(self, report: Callable[[Progress], None]) -> None:
        """Trains until the plan's tokens are used up. Each step is reported; Ctrl-C keeps what was learned.

        Raises ConfigurationError when a snapshot cannot be written (the last one is kept), or the loss is no number.
        """
        saved_s = time.monotonic()
        try:
            while self._num_tokens < self._plan.num_tokens:
                report(self._one_step())
                if time.monotonic() - saved_s > self._plan.snapshot_every_s:
                    self.save()
                    saved_s = time.monotonic()
        except KeyboardInterrupt:
            self.save()
            raise
        self.save()

    def save(self) -> None:
        """Writes a snapshot."""
        weights = {name: tensor.detach() for name, tensor in self._student.weights.items()}
        state = {"weights": weights, "optimizer": self._optimizer.state(), "batcher": self._batcher_state()}
        counts = {"step": self._step, "num_tokens": self._num_tokens, "means": self._means}
        save_snapshot(self._directory, {**state, **counts})

    def _one_step(self) -> Progress:
        begun_s = time.monotonic()
        progress = self._num_tokens / self._plan.num_tokens
        batch = self._batcher.next(progress).to(self._student.device)
        found = losses(self._student, batch, self._teacher, self._plan.mix)
        if not math.isfinite(found.total.item()):
            raise ConfigurationError(f"step {self._step}: the loss is {found.total.item()}; use smaller rates")
        torch.autograd.backward(found.total)
        self._optimizer.step(rate_share(progress, self._plan))
        self._step += 1
        self._num_tokens += batch.num_tokens
        speed = batch.num_tokens / max(1e-9, time.monotonic() - begun_s)
        entropy, divergence = self._smooth(found.cross_entropy, found.divergence)
        return Progress(self._step, self._num_tokens, self._plan.num_tokens, entropy, divergence, speed)

    def _smooth(self, entropy: float, divergence: float) -> tuple[float, float]:
        old_entropy, old_divergence = self._means or (entropy, divergence)
        keep = min(_SMOOTHING, 1 - 1 / self._step)
        self._means = (
            keep * old_entropy + (1 - keep) * entropy,
            keep * old_divergence + (1 - keep) * divergence,
        )
        return self._means

    def _batcher_state(self) -> tuple[int, dict[int, list[tuple[list[int], list[bool]]]]]:
        index, waiting = self._batcher.state()
        return index, {length: [(row.ids, row.learned) for row in rows] for length, rows in waiting.items()}

    def _resume(self) -> None:
        state = load_snapshot(self._directory)
        if state is None:
            return
        _copy(self._directory, state["weights"], self._student.weights)
        self._optimizer.restore(state["optimizer"])
        self._batcher.restore(state["batcher"])
        self._step, self._num_tokens, self._means = state["step"], state["num_tokens"], state["means"]


@torch.no_grad()
def _copy(directory: Path, saved: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in weights.items():
        if name not in saved or saved[name].shape != tensor.shape:
            raise ConfigurationError(f"{directory}: holds the training of another model ({name}); give another folder")
        tensor.copy_(saved[name])


def rate_share(progress: float, plan: Plan) -> float:
    """What share of the full learning rates holds there: up, level, and linearly down to 0 at the end."""
    rising = (progress + 1e-3) / plan.warmup_share if plan.warmup_share else 1.0
    falling = (1 - progress) / plan.decay_share if plan.decay_share else 1.0
    return max(0.0, min(1.0, rising, falling))
