"""Perceptrons: what an ensemble computes, and how weights begin."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

from research.networks.mlp import MLP, EnsembleLayerNorm, EnsembleLinear, EnsembleMLP, Layers

MakeNetwork: TypeAlias = Callable[..., nn.Module]

LAYERS = Layers([8, 6], nn.ELU, layer_norm=True, init=None)


def make_ensemble(**changes: Any) -> EnsembleMLP:
    """Three members from 5 inputs to 2 outputs; gains and offsets are random too."""
    ensemble = EnsembleMLP(3, 5, 2, LAYERS._replace(**changes))
    for layer in ensemble.modules():
        if isinstance(layer, EnsembleLayerNorm):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return ensemble


@torch.no_grad()
def separate_member(ensemble: EnsembleMLP, index: int) -> nn.Sequential:
    """A member rebuilt from torch's own layers."""
    layers: list[nn.Module] = []
    for layer in ensemble.layers:
        if isinstance(layer, EnsembleLinear):
            in_dim, out_dim = layer.weight[index].shape
            layers.append(alone := nn.Linear(in_dim, out_dim))
            alone.weight.copy_(layer.weight[index].T)
            alone.bias.copy_(layer.bias[index, 0])
        elif isinstance(layer, EnsembleLayerNorm):
            layers.append(alone := nn.LayerNorm(layer.dim))
            alone.weight.copy_(layer.weight[index, 0])
            alone.bias.copy_(layer.bias[index, 0])
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def weights(network: nn.Module) -> list[Tensor]:
    """Every weight matrix as (outputs, inputs)."""
    found: list[Tensor] = []
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            found.append(layer.weight)
        elif isinstance(layer, EnsembleLinear):
            found += [member.T for member in layer.weight]
    return found


def biases(network: nn.Module) -> list[Tensor]:
    return [m.bias for m in network.modules() if isinstance(m, (nn.Linear, EnsembleLinear))]


@pytest.fixture(params=[MLP, partial(EnsembleMLP, 3)])
def make_network(request: pytest.FixtureRequest) -> MakeNetwork:
    """Makes a perceptron or an ensemble of them, 5 inputs and 2 outputs."""

    def make(**changes: Any) -> nn.Module:
        return request.param(5, 2, LAYERS._replace(**changes))

    return make


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("hidden_dims", [[], [4], [8, 6]])
def test_an_ensemble_computes_what_its_members_would_alone(
    hidden_dims: list[int], layer_norm: bool
) -> None:
    ensemble = make_ensemble(hidden_dims=hidden_dims, layer_norm=layer_norm)
    x = torch.randn(7, 5)
    expected = torch.stack([separate_member(ensemble, index)(x) for index in range(3)])
    torch.testing.assert_close(ensemble(x), expected)
    assert not torch.allclose(expected[0], expected[1])


@pytest.mark.parametrize("index", [0, 2])
def test_one_member_alone_gives_its_slice_of_the_whole(index: int) -> None:
    ensemble, x = make_ensemble(), torch.randn(7, 5)
    torch.testing.assert_close(ensemble.forward_member(x, index), ensemble(x)[index])


def test_one_member_alone_has_gradients_for_itself_alone() -> None:
    ensemble = make_ensemble()
    ensemble.forward_member(torch.randn(7, 5), 1).sum().backward()
    for parameter in ensemble.parameters():
        assert parameter.grad is not None
        assert parameter.grad[1].any()
        assert not parameter.grad[[0, 2]].any()


def test_ensemble_layer_norm_is_torchs_for_every_member() -> None:
    norm = EnsembleLayerNorm(3, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 7, 8) * 5 + 2
    for index in range(3):
        gain, offset = norm.weight[index, 0], norm.bias[index, 0]
        expected = nn.functional.layer_norm(x[index], (8,), gain, offset)
        torch.testing.assert_close(norm(x)[index], expected)
        torch.testing.assert_close(norm.forward_member(x[index], index), expected)


def test_layer_norm_begins_as_torchs() -> None:
    x = torch.randn(3, 7, 8)
    torch.testing.assert_close(EnsembleLayerNorm(3, 8)(x), nn.LayerNorm(8)(x))


def test_a_perceptron_is_torchs_layers_in_order() -> None:
    network = MLP(5, 2, LAYERS)
    kinds = [type(layer) for layer in network]
    assert kinds == [nn.Linear, nn.LayerNorm, nn.ELU] * 2 + [nn.Linear]
    assert [tuple(w.shape) for w in weights(network)] == [(8, 5), (6, 8), (2, 6)]


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_ensemble_weights_begin_like_those_of_torchs_linear(name: str) -> None:
    values = getattr(EnsembleLinear(50, 16, 40), name)
    assert 0.24 < values.abs().max() <= 1 / math.sqrt(16)
    assert values.std().item() == pytest.approx(0.25 / math.sqrt(3), rel=0.05)  # if uniform
    assert values.flatten(1).unique(dim=0).shape[0] == 50


def test_orthogonal_init_makes_every_matrix_orthogonal(
    make_network: MakeNetwork,
) -> None:
    matrices = weights(make_network(init=nn.init.orthogonal_))
    for matrix in matrices:
        rows, columns = matrix.shape
        product = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
        torch.testing.assert_close(product, torch.eye(min(rows, columns)))
    assert not any(
        torch.equal(a, b)
        for i, a in enumerate(matrices)
        for b in matrices[:i]
        if a.shape == b.shape
    )


def test_init_is_given_matrices_of_outputs_by_inputs(
    make_network: MakeNetwork,
) -> None:
    def count(matrix: Tensor) -> Tensor:
        return matrix.copy_(torch.arange(matrix.numel()).reshape(matrix.shape))

    for matrix in weights(make_network(init=count)):
        assert torch.equal(matrix, torch.arange(matrix.numel()).reshape(matrix.shape).float())


def test_init_leaves_biases_at_zero(make_network: MakeNetwork) -> None:
    assert not any(bias.any() for bias in biases(make_network(init=nn.init.orthogonal_)))


def test_without_init_every_bias_is_as_torch_makes_it(
    make_network: MakeNetwork,
) -> None:
    assert all(bias.all() for bias in biases(make_network(init=None)))
