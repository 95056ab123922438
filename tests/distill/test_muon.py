"""The optimiser: what an update of a matrix is, and that a saved state goes on as it would have."""

import copy

import torch

from gemline.distill.muon import Optimizer, Rates, orthogonal

NAME = "model.layers.0.mlp.up_proj.weight"


def some_weights() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = {NAME: (6, 4), "model.layers.0.mlp.down_proj.weight": (4, 6), "model.norm.weight": (4,)}
    shapes |= {"model.embed_tokens.weight": (9, 4)}
    return {name: torch.randn(shape, generator=random).requires_grad_() for name, shape in shapes.items()}


def step(weights: dict[str, torch.Tensor], optimizer: Optimizer, number: int) -> None:
    random = torch.Generator().manual_seed(number)
    for tensor in weights.values():
        tensor.grad = torch.randn(tensor.shape, generator=random)
    optimizer.step(1.0)


def test_singular_values_become_about_one_and_directions_stay() -> None:
    matrices = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonal(matrices)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert torch.nn.functional.cosine_similarity(found.flatten(1), (left @ right).flatten(1)).min() > 0.95


def test_a_transposed_gradient_gives_a_transposed_update() -> None:
    matrices = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(orthogonal(matrices).transpose(1, 2), orthogonal(matrices.transpose(1, 2)), atol=1e-5)


def test_a_step_clears_gradients_and_goes_against_them() -> None:
    weights = some_weights()
    optimizer = Optimizer(weights, Rates())
    before = {name: tensor.detach().clone() for name, tensor in weights.items()}
    gradients = {name: torch.randn(tensor.shape) for name, tensor in weights.items()}
    for name, tensor in weights.items():
        tensor.grad = gradients[name].clone()
    optimizer.step(1.0)
    assert all(tensor.grad is None for tensor in weights.values())
    for name, tensor in weights.items():
        assert ((tensor.detach() - before[name]) * gradients[name]).sum() < 0


def test_a_share_of_zero_moves_nothing() -> None:
    weights = some_weights()
    before = {name: tensor.detach().clone() for name, tensor in weights.items()}
    optimizer = Optimizer(weights, Rates())
    for tensor in weights.values():
        tensor.grad = torch.ones_like(tensor)
    optimizer.step(0.0)
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_a_restored_optimizer_goes_on_as_the_saved_one() -> None:
    weights = some_weights()
    optimizer = Optimizer(weights, Rates())
    step(weights, optimizer, 1)
    twins = {name: tensor.detach().clone().requires_grad_() for name, tensor in weights.items()}
    twin = Optimizer(twins, Rates())
    twin.restore(copy.deepcopy(optimizer.state()))
    step(weights, optimizer, 2)
    step(twins, twin, 2)
    assert all(torch.equal(weights[name], twins[name]) for name in weights)
