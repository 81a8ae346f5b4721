"""The networks of DrQ-v2: shapes, scaling, initial weights, and the images they take."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import nn

from research.networks.drqv2 import DrQv2ActorCritic, Encoder, Trunk

IMAGES = Box(0, 255, (9, 84, 84), np.uint8)
ACTIONS = Box(-1, 1, (2,), np.float32)


def make_network(
    observation_space: gymnasium.Space = IMAGES, *, feature_dim: int = 50
) -> DrQv2ActorCritic:
    return DrQv2ActorCritic(
        observation_space, ACTIONS, feature_dim=feature_dim, hidden_dims=[64], num_critics=2
    )


def test_the_encoder_of_84_pixels_is_the_papers() -> None:
    encoder = Encoder((9, 84, 84))
    shapes = [tuple(p.shape) for p in encoder.parameters() if p.dim() == 4]
    assert shapes == [(32, 9, 3, 3), *[(32, 32, 3, 3)] * 3]
    assert encoder.output_dim == 32 * 35 * 35
    images = torch.randint(256, (2, 9, 84, 84), dtype=torch.uint8)
    encoded = encoder(images)
    assert encoded.shape == (2, 39200)
    assert (encoded >= 0).all()


def test_the_encoder_computes_the_convolutions_of_scaled_images() -> None:
    encoder = Encoder((3, 21, 17))
    images = torch.randint(256, (4, 3, 21, 17), dtype=torch.uint8)
    x = images.double() / 255 - 0.5
    stride = 2
    for layer in encoder:
        if isinstance(layer, nn.Conv2d):
            weight, bias = layer.weight.double().contiguous(), layer.bias
            assert bias is not None
            x = nn.functional.conv2d(x, weight, bias.double(), stride=stride).relu()
            stride = 1
    torch.testing.assert_close(encoder(images).double(), x.flatten(1), atol=1e-5, rtol=1e-5)


def test_actor_and_critics_take_what_the_encoder_gives() -> None:
    network = make_network()
    encoded = network.encoder(torch.randint(256, (3, 9, 84, 84), dtype=torch.uint8))
    action = network.actor(encoded)
    assert action.shape == (3, 2)
    assert (action.abs() <= 1).all()
    assert network.critics(encoded, action).shape == (2, 3)


def test_actor_and_critics_have_trunks_of_their_own() -> None:
    network = make_network(feature_dim=20)
    first = network.actor[0]
    assert isinstance(first, Trunk)
    trunks = first, network.critics.trunk
    assert [trunk[0].out_features for trunk in trunks] == [20, 20]
    assert not {id(p) for p in trunks[0].parameters()} & {id(p) for p in trunks[1].parameters()}
    encoded = torch.rand(5, network.encoder.output_dim)
    for trunk in trunks:
        features = trunk[1](trunk[0](encoded))
        torch.testing.assert_close(features.mean(dim=1), torch.zeros(5), atol=1e-5, rtol=0)
        assert torch.equal(trunk(encoded), features.tanh())


def test_weights_begin_orthogonal_and_biases_at_zero() -> None:
    network = make_network()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            rows = module.weight.flatten(1)
            torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(32), atol=1e-4, rtol=0)
        elif isinstance(module, nn.Linear):
            small = min(module.weight.shape)
            rows = module.weight if len(module.weight) == small else module.weight.T
            torch.testing.assert_close(rows @ rows.T, torch.eye(small), atol=1e-4, rtol=0)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert not module.bias.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        (Box(-1, 1, (3,), np.float32), r"must be uint8 images .*; try env\.pixels=true"),
        (Box(0, 1, (3, 84, 84), np.float32), r"must be uint8 images .*; try env\.pixels=true"),
        (Box(0, 255, (3, 14, 20), np.uint8), "images must be at least 15 x 15, got 14 x 20"),
    ],
)
def test_other_observations_are_refused(space: gymnasium.Space, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_network(space)
