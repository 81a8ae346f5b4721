"""Values of K actions, or of M atoms each, with the options of DQN's successors."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import gymnasium
import torch
from torch import Tensor, nn

from research.batches import Tree
from research.networks.encoders import EncoderFactory
from research.networks.mlp import Activation
from research.networks.predictor import Predictor, float_shape
from research.ranges import PositiveFloat, PositiveInt


class NoisyLinear(nn.Module):
    """A linear layer with noise on its weights, whose size is learned.

    Fortunato et al., 2018, https://arxiv.org/abs/1706.10295, with factorised Gaussian noise. What
    equation 9 adds to weights and biases is added to the outputs, so that every example of a batch
    has noise of its own.

    Args:
        in_dim: of the inputs.
        out_dim: of the outputs.
        noise_scale: sigma_0; the noise begins with sigma_0 / sqrt(in_dim).

    Attributes:
        noise_dim: numbers of noise per example.

    """

    def __init__(self, in_dim: int, out_dim: int, *, noise_scale: float) -> None:
        super().__init__()
        self.dims = in_dim, out_dim
        self.noise_dim = in_dim + out_dim
        bound = 1 / math.sqrt(in_dim)
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_dim).uniform_(-bound, bound))
        self.weight_noise = nn.Parameter(torch.full((out_dim, in_dim), noise_scale * bound))
        self.bias_noise = nn.Parameter(torch.full((out_dim,), noise_scale * bound))

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """Outputs (B, out) for inputs (B, in) and noise (B, in + out), or None for no noise."""
        mean = nn.functional.linear(x, self.weight, self.bias)
        if noise is None:
            return mean
        noise_in, noise_out = noise.split(self.dims, dim=1)
        spread = nn.functional.linear(noise_in * x, self.weight_noise, self.bias_noise)
        return mean + noise_out * spread


class Stream(nn.Module):
    """A perceptron, whose linear layers may be noisy: (B, in) to (B, out).

    Args:
        dims: widths, from the inputs' to the outputs'.
        activation: makes the activation after each hidden layer.
        noise_scale: of noisy layers; None for ordinary ones.

    Attributes:
        noise_dims: numbers of noise per example, for each noisy layer.

    """

    def __init__(
        self, dims: Sequence[int], activation: Activation, noise_scale: float | None
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width in pairwise(dims):
            if noise_scale is None:
                layers.append(nn.Linear(width_in, width))
            else:
                layers.append(NoisyLinear(width_in, width, noise_scale=noise_scale))
            layers.append(activation())
        self.layers = nn.ModuleList(layers[:-1])
        self.noise_dims = [
            layer.noise_dim for layer in self.layers if isinstance(layer, NoisyLinear)
        ]

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        parts = iter(() if noise is None else noise.split(self.noise_dims, dim=1))
        for layer in self.layers:
            x = layer(x, next(parts, None)) if isinstance(layer, NoisyLinear) else layer(x)
        return x


class QNetwork(Predictor):
    """Maps observations (B, ...) to values (B, K), or to atoms (B, K, M).

    With ``dueling`` these are the sum of a state's value and of the actions' advantages, less the
    mean of the advantages (Wang et al., 2016, https://arxiv.org/abs/1511.06581, equation 9; with
    atoms as in Hessel et al., 2018, https://arxiv.org/abs/1710.02298).

    Deviations:
        The gradient that enters the encoder from two streams is not divided by sqrt(2).

    Args:
        observation_space: a Box of floats of any shape; or what the encoder takes.
        action_space: Discrete, K actions from 0 on.
        hidden_dims: widths of the hidden layers, those of each stream if there are two.
        activation: makes the activation after each hidden layer.
        dueling: whether there are streams for the value and for the advantages.
        noise_scale: sigma_0 of the noise on the weights of all linear layers but the encoder's;
            None for no noise.
        num_atoms: M; None for values.
        encoder: makes the encoder of the observations; None to flatten them.

    Raises:
        ValueError: for spaces that it cannot take.

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        hidden_dims: Sequence[PositiveInt],
        activation: Activation,
        dueling: bool,
        noise_scale: PositiveFloat | None,
        num_atoms: PositiveInt | None,
        encoder: EncoderFactory | None,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.num_atoms = num_atoms
        self.encoder: nn.Module = nn.Flatten()
        if encoder is None:
            width = math.prod(float_shape(observation_space))
        else:
            self.encoder = cast(nn.Module, encoder(observation_space))
            width = cast(int, self.encoder.output_dim)
        atoms = num_atoms or 1
        dims = [width, *hidden_dims]
        self.advantage = Stream([*dims, self.output_dim * atoms], activation, noise_scale)
        self.value = Stream([*dims, atoms], activation, noise_scale) if dueling else None
        streams = [self.advantage] if self.value is None else [self.advantage, self.value]
        self.noise_dims = [sum(stream.noise_dims) for stream in streams]

    def forward(self, obs: Tree, noise: Tensor | None = None) -> Tensor:
        """Values (B, K) or atoms (B, K, M); ``noise`` is of ``draw_noise``, None for the mean."""
        features = self.encoder(obs)
        parts = [None, None] if noise is None else [*noise.split(self.noise_dims, dim=1)]
        advantage = self.shape(self.advantage(features, parts[0]))
        if self.value is None:
            return advantage
        value = self.shape(self.value(features, parts[1]))
        return value + advantage - advantage.mean(dim=1, keepdim=True)

    def shape(self, outputs: Tensor) -> Tensor:
        """The outputs (B, N) of a stream as values (B, N), or as atoms (B, N / M, M)."""
        return outputs if self.num_atoms is None else outputs.unflatten(1, (-1, self.num_atoms))

    def draw_noise(self, size: int) -> Tensor | None:
        """Noise for ``size`` examples from torch's global generator, (B, D); None without noise."""
        if not sum(self.noise_dims):
            return None
        weight = next(self.advantage.parameters())
        noise = torch.randn(size, sum(self.noise_dims), dtype=weight.dtype, device=weight.device)
        return noise.sign() * noise.abs().sqrt()
