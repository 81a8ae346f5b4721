"""Multi-layer perceptrons, single and as batched ensembles."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

Activation: TypeAlias = Callable[[], nn.Module]
Init: TypeAlias = Callable[[Tensor], Tensor]
"""Fills a weight matrix (outputs, inputs) in place, like those of ``torch.nn.init``."""


class Layers(NamedTuple):
    """Options of the layers of a perceptron, except its input and output widths.

    Attributes:
        hidden_dims: widths of the hidden layers.
        activation: makes the activation after each hidden layer.
        layer_norm: whether hidden layers are normalised before their activation.
        init: fills the weight matrices, the output layer's too; None for torch's initialisation.

    """

    hidden_dims: Sequence[int]
    activation: Activation
    layer_norm: bool
    init: Init | None


class EnsembleLinear(nn.Module):
    """N linear layers evaluated as one batched product: (N, B, in) to (N, B, out).

    Each member is initialised like ``torch.nn.Linear``.
    """

    def __init__(self, num_members: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_members, in_dim, out_dim))
        self.bias = nn.Parameter(torch.empty(num_members, 1, out_dim))
        bound = 1 / math.sqrt(in_dim)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)

    def forward_member(self, x: Tensor, index: int) -> Tensor:
        """One member alone: (B, in) to (B, out)."""
        return torch.addmm(self.bias[index], x, self.weight[index])


class EnsembleLayerNorm(nn.Module):
    """Layer normalisation with N sets of gains and offsets, on (N, B, D)."""

    def __init__(self, num_members: int, dim: int, *, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.dim = dim
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(num_members, 1, dim))
        self.bias = nn.Parameter(torch.zeros(num_members, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, self.normalise(x), self.weight)

    def forward_member(self, x: Tensor, index: int) -> Tensor:
        """One member alone: (B, D) to (B, D)."""
        return torch.addcmul(self.bias[index], self.normalise(x), self.weight[index])

    def normalise(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (self.dim,), eps=self.epsilon)


class EnsembleMLP(nn.Module):
    """N perceptrons on one input: (B, in) to (N, B, out)."""

    def __init__(self, num_members: int, in_dim: int, out_dim: int, layers: Layers) -> None:
        super().__init__()
        self.num_members = num_members
        dims = [in_dim, *layers.hidden_dims]
        self.layers = nn.ModuleList()
        for width_in, width in pairwise(dims):
            self.layers.append(EnsembleLinear(num_members, width_in, width))
            if layers.layer_norm:
                self.layers.append(EnsembleLayerNorm(num_members, width))
            self.layers.append(layers.activation())
        self.layers.append(EnsembleLinear(num_members, dims[-1], out_dim))
        initialise(self, layers.init)

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(self.num_members, *x.shape)
        for layer in self.layers:
            x = layer(x)
        return x

    def forward_member(self, x: Tensor, index: int) -> Tensor:
        """One member, without computing the others: (B, in) to (B, out)."""
        for layer in self.layers:
            is_ensemble = isinstance(layer, (EnsembleLinear, EnsembleLayerNorm))
            x = layer.forward_member(x, index) if is_ensemble else layer(x)
        return x


class MLP(nn.Sequential):
    """A perceptron: (B, in) to (B, out)."""

    def __init__(self, in_dim: int, out_dim: int, layers: Layers) -> None:
        dims = [in_dim, *layers.hidden_dims]
        modules: list[nn.Module] = []
        for width_in, width in pairwise(dims):
            modules.append(nn.Linear(width_in, width))
            if layers.layer_norm:
                modules.append(nn.LayerNorm(width))
            modules.append(layers.activation())
        super().__init__(*modules, nn.Linear(dims[-1], out_dim))
        initialise(self, layers.init)


@torch.no_grad()
def initialise(module: nn.Module, init: Init | None) -> None:
    """Set linear layers' weights by ``init`` and their biases to 0; None changes nothing."""
    if init is None:
        return
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            init(layer.weight)
            layer.bias.zero_()
        elif isinstance(layer, EnsembleLinear):
            for member in layer.weight:
                member.copy_(init(torch.empty_like(member).t().contiguous()).t())
            layer.bias.zero_()
