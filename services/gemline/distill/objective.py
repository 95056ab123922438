"""What a student minimises: cross entropy with the text, and how far it is from a teacher's distribution."""

from typing import NamedTuple

import torch
from torch.nn import functional

from gemline.distill.examples import Batch
from gemline.distill.network import Network

_ROWS_AT_ONCE = 2048  # logits of a large vocabulary are never kept for a whole batch


class Mix(NamedTuple):
    """(1 - share) * cross entropy + share * temperature^2 * KL(teacher || student), both softened by temperature."""

    share: float = 0.5
    temperature: float = 1.5


class Losses(NamedTuple):
    """Means over the learned positions, in nats. `divergence` is 0 without a teacher."""

    total: torch.Tensor
    cross_entropy: float
    divergence: float


def losses(student: Network, batch: Batch, teacher: Network | None, mix: Mix) -> Losses:
    """The loss of one batch, which autograd can follow to the student's weights only."""
    hidden_TD = student.hidden(batch.ids_BT).flatten(0, 1)[batch.places_T]
    taught_TD = _taught(teacher, batch)
    num_places = max(1, len(batch.targets_T))
    total = hidden_TD.new_zeros(())
    entropy_sum, divergence_sum = 0.0, 0.0
    for start in range(0, len(batch.targets_T), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        logits_TV = student.logits(hidden_TD[rows])
        entropy = functional.cross_entropy(logits_TV, batch.targets_T[rows], reduction="sum")
        entropy_sum += entropy.item()
        if teacher is None or taught_TD is None:
            total = total + entropy
            continue
        with torch.no_grad():
            wanted_TV = teacher.logits(taught_TD[rows])
        divergence = divergence_from(wanted_TV, logits_TV, mix.temperature)
        divergence_sum += divergence.item()
        total = total + (1 - mix.share) * entropy + mix.share * mix.temperature**2 * divergence
    return Losses(total / num_places, entropy_sum / num_places, divergence_sum / num_places)


def divergence_from(teacher_TV: torch.Tensor, student_TV: torch.Tensor, temperature: float) -> torch.Tensor:
    """Sum over rows of KL(softmax(teacher / temperature) || softmax(student / temperature)), in nats."""
    wanted_TV = functional.log_softmax(teacher_TV / temperature, -1)
    ours_TV = functional.log_softmax(student_TV / temperature, -1)
    return functional.kl_div(ours_TV, wanted_TV, log_target=True, reduction="sum")


@torch.no_grad()
def _taught(teacher: Network | None, batch: Batch) -> torch.Tensor | None:
    return None if teacher is None else teacher.hidden(batch.ids_BT).flatten(0, 1)[batch.places_T]
