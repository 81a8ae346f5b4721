"""Values and atoms of actions: streams, noise on the weights, encoders."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor, nn

from research.config import build
from research.networks.q_network import NoisyLinear, QNetwork
from tests.conftest import Load

OBS, ACTIONS = Box(-1, 1, (3,), np.float32), Discrete(4)


def make(
    obs_space: Space = OBS,
    action_space: Space = ACTIONS,
    **changes: Any,
) -> QNetwork:
    options: dict[str, Any] = {
        "hidden_dims": (8, 6),
        "activation": nn.ReLU,
        "dueling": False,
        "noise_scale": None,
        "num_atoms": None,
        "encoder": None,
    }
    return QNetwork(obs_space, action_space, **(options | changes))


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("noise_scale", [None, 0.5])
@pytest.mark.parametrize(("num_atoms", "shape"), [(None, (5, 4)), (1, (5, 4, 1)), (7, (5, 4, 7))])
def test_every_action_has_a_value_or_atoms(
    dueling: bool, noise_scale: float | None, num_atoms: int | None, shape: tuple[int, ...]
) -> None:
    network = make(dueling=dueling, noise_scale=noise_scale, num_atoms=num_atoms)
    assert network(torch.randn(5, 3)).shape == shape
    assert network(torch.randn(5, 3), network.draw_noise(5)).shape == shape
    assert network.output_dim == 4


@pytest.mark.parametrize("num_atoms", [None, 5])
def test_streams_are_summed_without_the_mean_advantage(num_atoms: int | None) -> None:
    network, obs = make(dueling=True, num_atoms=num_atoms), torch.randn(6, 3)
    assert network.value is not None
    atoms = num_atoms or 1
    advantage = network.advantage(obs, None).view(6, 4, atoms)
    value = network.value(obs, None).view(6, 1, atoms)
    expected = torch.stack(
        [
            value[:, 0] + advantage[:, k] - sum(advantage[:, j] for j in range(4)) / 4
            for k in range(4)
        ],
        dim=1,
    )
    torch.testing.assert_close(network(obs).view(6, 4, atoms), expected)


def noisy_weights(layer: NoisyLinear, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and biases by equation 9, for the noise (in + out,) of one example."""
    noise_in, noise_out = noise[: layer.dims[0]], noise[layer.dims[0] :]
    weight = layer.weight + layer.weight_noise * torch.outer(noise_out, noise_in)
    return weight, layer.bias + layer.bias_noise * noise_out


def test_noise_on_outputs_is_noise_on_the_weights_of_every_example() -> None:
    layer = NoisyLinear(3, 5, noise_scale=0.5).double()
    nn.init.normal_(layer.weight_noise)
    nn.init.normal_(layer.bias_noise)
    x, noise = torch.randn(4, 3).double(), torch.randn(4, 8).double()
    for example, row, output in zip(x, noise, layer(x, noise), strict=True):
        weight, bias = noisy_weights(layer, row)
        torch.testing.assert_close(output, weight @ example + bias)


@pytest.mark.parametrize("dueling", [False, True])
def test_a_noisy_network_is_one_of_noisy_layers(dueling: bool) -> None:
    network = make(dueling=dueling, noise_scale=0.5).double()
    obs, noise = torch.randn(1, 3).double(), network.draw_noise(1)
    assert noise is not None
    streams, outputs = [network.advantage, *([network.value] if network.value else [])], []
    rest = noise[0]
    for stream in streams:
        x = obs
        for layer in stream.layers:
            if isinstance(layer, NoisyLinear):
                weight, bias = noisy_weights(layer, rest[: layer.noise_dim])
                x, rest = nn.functional.linear(x, weight, bias), rest[layer.noise_dim :]
            else:
                x = layer(x)
        outputs.append(x)
    assert not len(rest)
    expected = outputs[0]
    if dueling:
        expected = outputs[1] + expected - expected.mean(1, keepdim=True)
    torch.testing.assert_close(network(obs, noise), expected)


def test_noise_is_the_signed_root_of_normal_numbers_for_every_example() -> None:
    network = make(noise_scale=0.5)
    torch.manual_seed(3)
    noise = network.draw_noise(1000)
    torch.manual_seed(3)
    normal = torch.randn(1000, 3 + 8 + 8 + 6 + 6 + 4)
    assert noise is not None
    torch.testing.assert_close(noise * noise.abs(), normal)
    assert network.double().draw_noise(2).dtype == torch.float64  # type: ignore[union-attr]


def test_without_noise_the_mean_weights_count() -> None:
    network, obs = make(noise_scale=0.5), torch.randn(5, 3)
    mean = network(obs)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("_noise"):
                parameter.fill_(100.0)
    assert torch.equal(network(obs), mean)
    assert not torch.allclose(network(obs, network.draw_noise(5)), mean)
    assert make().draw_noise(5) is None


def test_noisy_layers_begin_as_the_paper_says() -> None:
    layer = NoisyLinear(400, 50, noise_scale=0.5)
    bound = 1 / math.sqrt(400)
    for mean in (layer.weight, layer.bias):
        assert -bound <= mean.min() < -0.9 * bound
        assert 0.9 * bound < mean.max() <= bound
    for noise in (layer.weight_noise, layer.bias_noise):
        assert torch.equal(noise, torch.full_like(noise, 0.5 / 20))


def test_observations_of_any_shape_are_flattened_unless_an_encoder_takes_them() -> None:
    space = Box(-1, 1, (2, 3, 3), np.float32)
    assert make(space)(torch.randn(5, 2, 3, 3)).shape == (5, 4)

    class Encoder(nn.Sequential):
        output_dim = 7

        def __init__(self, given: Space) -> None:
            assert given is images
            super().__init__(nn.Conv2d(2, 7, 3), nn.Flatten())

    images = Box(0, 255, (2, 3, 3), np.uint8)
    network = make(images, dueling=True, encoder=Encoder)
    assert network(torch.randn(5, 2, 3, 3)).shape == (5, 4)
    assert any(name.startswith("encoder.0") for name, _ in network.named_parameters())
    with pytest.raises(ValueError, match="observations must be floats"):
        make(images)


def test_rainbow_has_the_published_network(load: Load) -> None:
    """Hessel et al., 2018, appendix: three convolutions, then streams of 512 and noisy outputs."""
    images = "network/encoder=nature", "network.encoder.feature_dim=null"
    cfg = load("experiment=rainbow", *images)
    network = build(cfg.network, Box(0, 255, (4, 84, 84), np.uint8), Discrete(18))
    shapes = {name: tuple(each.shape) for name, each in network.named_parameters()}
    assert [shape for name, shape in shapes.items() if "encoder" in name and len(shape) == 4] == [
        (32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)
    ]  # fmt: skip
    streams = {name: shape for name, shape in shapes.items() if name.endswith("weight_noise")}
    assert streams == {
        "advantage.layers.0.weight_noise": (512, 3136),
        "advantage.layers.2.weight_noise": (18 * 51, 512),
        "value.layers.0.weight_noise": (512, 3136),
        "value.layers.2.weight_noise": (51, 512),
    }
    assert sum(each.numel() for each in network.encoder.parameters()) == 77_984
