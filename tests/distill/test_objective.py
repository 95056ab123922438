"""Losses against what they are by definition."""

import math

import torch
from torch.nn import functional

from gemline.distill.examples import Example, as_batch
from gemline.distill.network import Network, fresh_weights
from gemline.distill.objective import Mix, divergence_from, losses
from gemline.engine.config import Gemma2Config

CONFIG = Gemma2Config(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    query_pre_attn_scalar=8,
    sliding_window=4,
    max_position_embeddings=32,
)
BATCH = as_batch([Example([2, 5, 6, 7], [False, False, True, True]), Example([2, 9], [False, True])], 6)


def network(seed: int) -> Network:
    return Network(CONFIG, fresh_weights(CONFIG, seed))


def test_cross_entropy_is_that_of_the_learned_tokens_alone() -> None:
    student = network(0)
    found = losses(student, BATCH, None, Mix())
    logits = student.logits(student.hidden(BATCH.ids_BT))
    expected = functional.cross_entropy(
        torch.stack([logits[0, 1], logits[0, 2], logits[1, 0]]), torch.tensor([6, 7, 9])
    )
    assert math.isclose(found.cross_entropy, expected.item(), rel_tol=1e-5)
    assert math.isclose(found.total.item(), expected.item(), rel_tol=1e-5)
    assert found.divergence == 0.0


def test_divergence_is_that_of_the_softened_distributions() -> None:
    teacher_TV, student_TV = torch.randn(3, 7), torch.randn(3, 7)
    wanted, ours = (torch.softmax(logits / 2.0, -1) for logits in (teacher_TV, student_TV))
    expected = (wanted * (wanted / ours).log()).sum()
    assert torch.allclose(divergence_from(teacher_TV, student_TV, 2.0), expected, rtol=1e-4)


def test_a_student_equal_to_its_teacher_has_no_divergence_and_half_the_cross_entropy() -> None:
    student, teacher = network(0), network(0)
    found = losses(student, BATCH, teacher, Mix(share=0.5))
    assert abs(found.divergence) < 1e-5
    assert math.isclose(found.total.item(), 0.5 * found.cross_entropy, rel_tol=1e-4)


def test_a_teacher_gets_no_gradient() -> None:
    student, teacher = network(0), network(1)
    torch.autograd.backward(losses(student, BATCH, teacher, Mix()).total)
    assert all(tensor.grad is None for tensor in teacher.weights.values())
    assert student.weights["model.norm.weight"].grad is not None


def test_a_batch_in_which_nothing_is_learned_costs_nothing() -> None:
    found = losses(network(0), as_batch([Example([2, 5], [False, False])], 4), None, Mix())
    assert found.total.item() == 0.0
