"""Encoders of images and of Dicts: torch's own layers, the spaces they take, and who uses them."""

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import Tensor, nn

from research.config import build
from research.networks.encoders import ImageEncoder, MultiInput
from research.networks.mlp import initialise
from research.networks.predictor import FlatMLP
from tests.conftest import CONF, Load, options

FRAMES = Box(0, 255, (4, 84, 84), np.uint8)
PLANES = Box(0, 1, (4, 10, 10), np.uint8)
ACTIONS = Box(-1, 1, (2,), np.float32)
SMALL: dict[str, Any] = {
    "channels": [3, 5],
    "kernels": [4, 3],
    "strides": [2, 1],
    "feature_dim": 7,
    "init": None,
}


def make(space: gymnasium.Space, **changes: Any) -> ImageEncoder:
    return ImageEncoder(space, **(SMALL | changes))


def vector(*shape: int) -> Box:
    return Box(-np.inf, np.inf, shape, np.float32)


def sample(space: gymnasium.Space, size: int = 5) -> Any:
    """``size`` observations, as tensors."""
    space.seed(0)
    rows = [space.sample() for _ in range(size)]
    if isinstance(space, Dict):
        return {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in space}
    return torch.from_numpy(np.stack(rows))


def build_encoder(load: Load, space: gymnasium.Space, *overrides: str) -> Any:
    return build(load(*overrides).network.encoder, space)


def with_weights_of(encoder: nn.Module, reference: nn.Module) -> nn.Module:
    """``reference`` in float64 with the weights of ``encoder``."""
    weights = zip(reference.parameters(), encoder.parameters(), strict=True)
    for own, other in weights:
        own.data = other.detach().double()
    return reference


def nature() -> nn.Module:
    """Extended Data Table 1 of Mnih et al., 2015, up to its last hidden layer."""
    return nn.Sequential(
        *(nn.Conv2d(4, 32, 8, stride=4), nn.ReLU()),
        *(nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, stride=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(3136, 512), nn.ReLU()),
    )


def minatar() -> nn.Module:
    """The network of the authors' examples/dqn.py, up to its hidden layer."""
    return nn.Sequential(
        *(nn.Conv2d(4, 16, 3, stride=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * 8 * 16, 128), nn.ReLU()),
    )


@pytest.mark.parametrize(
    ("choice", "space", "reference", "largest"),
    [("nature", FRAMES, nature(), 255), ("minatar", PLANES, minatar(), 1)],
)
def test_features_are_those_of_torchs_layers(
    load: Load, choice: str, space: Box, reference: nn.Module, largest: int
) -> None:
    encoder = build_encoder(load, space, "network=mlp", f"network/encoder={choice}").double()
    images = sample(space)
    expected = with_weights_of(encoder, reference)(images.double() / largest)
    torch.testing.assert_close(encoder(images), expected, rtol=0, atol=1e-12)
    assert expected.shape == (5, encoder.output_dim)
    assert (expected > 0).any()


def test_integers_are_scaled_by_the_spaces_largest_and_floats_are_not() -> None:
    images = torch.randint(256, (5, 2, 9, 8), dtype=torch.uint8)
    encoder = make(Box(0, 255, (2, 9, 8), np.uint8))
    floats = make(vector(2, 9, 8))
    floats.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(encoder(images), floats(images / 255))
    planes = make(Box(0, 1, (2, 9, 8), np.uint8))
    planes.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(planes(images), floats(images.float()))


def test_without_a_linear_layer_features_are_those_of_the_last_convolution() -> None:
    space, linear = Box(0, 255, (2, 9, 8), np.uint8), make(Box(0, 255, (2, 9, 8), np.uint8))
    encoder = make(space, feature_dim=None)
    encoder.load_state_dict(linear.state_dict(), strict=False)
    images = sample(space)
    assert encoder(images).shape == (5, encoder.output_dim) == (5, 5)
    expected = linear.layers[:-2](images.float() / 255)
    torch.testing.assert_close(encoder(images), expected)


@pytest.mark.parametrize("choice", ["actor_value", "actor_value_cnn"])
def test_weights_begin_as_those_of_the_rest_of_the_network(load: Load, choice: str) -> None:
    encoder = build_encoder(load, PLANES, f"network={choice}", "network/encoder=minatar")
    for layer in encoder.layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            rows = layer.weight.detach().flatten(1)
            rows = rows if rows.shape[0] <= rows.shape[1] else rows.t()
            torch.testing.assert_close(rows @ rows.t(), 2 * torch.eye(len(rows)))
            assert layer.bias is not None
            assert not layer.bias.any()


def test_without_an_init_weights_are_torchs_own(load: Load) -> None:
    encoder = build_encoder(load, PLANES, "network=mlp", "network/encoder=minatar")
    bound = 1 / (4 * 3 * 3) ** 0.5
    for parameter in encoder.layers[0].parameters():
        assert bound / 2 < parameter.abs().max() <= bound


def test_a_convolution_without_a_bias_can_be_initialised() -> None:
    layer = nn.Conv2d(1, 2, 3, bias=False)
    initialise(layer, nn.init.zeros_)
    assert not layer.weight.any()


@pytest.mark.parametrize("side", [36, 35])
def test_the_smallest_image_of_nature_has_36_pixels(load: Load, side: int) -> None:
    space = Box(0, 255, (1, 50, side), np.uint8)
    if side == 36:
        encoder = build_encoder(load, space, "network=mlp", "network/encoder=nature")
        assert encoder(sample(space, 2)).shape == (2, 512)
        return
    with pytest.raises(Exception, match="images must be at least 36 x 36, got 50 x 35; try netw"):
        build_encoder(load, space, "network=mlp", "network/encoder=nature")


@pytest.mark.parametrize(
    ("space", "changes", "words"),
    [
        (vector(3), {}, r"must be images \(C, H, W\), got Box.*; try network/encoder=multi_inp"),
        (Dict(a=FRAMES), {}, r"must be images \(C, H, W\), got Dict"),
        (FRAMES, {"strides": [1]}, r"one number for each .*, got \[3, 5\], \[4, 3\] and \[1\]"),
        (FRAMES, {"channels": [], "kernels": [], "strides": []}, r"got \[\], \[\] and \[\]"),
    ],
)
def test_what_it_cannot_take_is_refused(
    space: gymnasium.Space, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        make(space, **changes)


MIXED = Dict(
    {
        "camera.left": Box(0, 255, (3, 9, 8), np.uint8),
        "type": vector(2, 2),
        "depth": vector(1, 9, 8),
        "speed": vector(),
        "joints": vector(3),
    }
)
"""Two images and three vectors, whose keys a ModuleDict would not take."""


def test_images_are_encoded_and_floats_stand_beside_them() -> None:
    encoder, obs = MultiInput(MIXED, image=partial(ImageEncoder, **SMALL)), sample(MIXED)
    camera, depth = (make(MIXED[key]) for key in ("camera.left", "depth"))
    for own, reference in zip(encoder.encoders, (camera, depth), strict=True):
        with_weights_of(own, reference.double())
    keys = ("joints", "speed", "type")
    vectors = [obs[key].double().reshape(5, -1) for key in keys]
    images = [camera(obs["camera.left"]), depth(obs["depth"])]
    features = encoder.double()(obs)
    torch.testing.assert_close(features, torch.cat([*images, *vectors], dim=1))
    assert features.shape == (5, 7 + 7 + 3 + 1 + 4)
    assert encoder.output_dim == 22


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (FRAMES, "observations must be a Dict, got Box.*; try env.flatten_obs=false, or network/e"),
        (Dict(a=FRAMES, b=Discrete(3)), r"observations\['b'\] must be floats or an image .*Discr"),
        (Dict(a=Box(0, 9, (3,), np.int64)), r"observations\['a'\] must be floats or an image"),
    ],
)
def test_a_dict_of_other_parts_is_refused(space: gymnasium.Space, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MultiInput(space, image=partial(ImageEncoder, **SMALL))


@pytest.mark.parametrize("image", ["nature", "minatar"])
def test_the_yaml_chooses_the_encoder_of_the_images(load: Load, image: str) -> None:
    choice = f"network/encoder@network.encoder.image={image}"
    cfg = load("network=mlp", "network/encoder=multi_input", choice)
    network = build(cfg.network, Dict(a=FRAMES, b=vector(3)), Discrete(6))
    width = {"nature": 512, "minatar": 128}[image]
    assert network.mlp[0].in_features == width + 3


WITH_ENCODER = [
    name
    for name in options("network")
    if "\nencoder: null" in (CONF / "network" / f"{name}.yaml").read_text()
]


@pytest.mark.parametrize("name", WITH_ENCODER)
def test_every_network_with_an_encoder_gets_the_one_chosen(load: Load, name: str) -> None:
    cfg = load(f"network={name}", "network/encoder=minatar")
    is_discrete = name in ("actor_value", "categorical", "mlp", "q_network")
    network = build(cfg.network, PLANES, Discrete(3) if is_discrete else ACTIONS)
    assert isinstance(network.encoder, ImageEncoder)
    assert network.encoder(sample(PLANES)).shape == (5, 128)


class Mean(nn.Module):
    """The mean of every channel, times a number."""

    def __init__(self, space: gymnasium.Space) -> None:
        super().__init__()
        assert space.shape
        self.output_dim = space.shape[0]
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * images.float().mean(dim=(2, 3))


@pytest.mark.parametrize(
    "name", ["actor_critic", "batch_renorm", "quantile_critics", "squashed_gaussian", "simba"]
)
def test_actor_and_critics_take_features(load: Load, name: str) -> None:
    network = build(load(f"network={name}").network)(PLANES, ACTIONS, encoder=Mean)
    features = network.encoder(sample(PLANES))
    torch.testing.assert_close(features, sample(PLANES).float().mean(dim=(2, 3)) / 2)
    assert network.critics(features, torch.zeros(5, 2)).shape[1:2] == (5,)
    actions = network.actor(features)
    assert (actions if name == "actor_critic" else actions.mean).shape == (5, 2)


def test_the_perceptron_takes_features() -> None:
    options: dict[str, Any] = {"hidden_dims": [8], "activation": nn.ReLU, "layer_norm": False}
    network = FlatMLP(PLANES, Discrete(3), **options, init=None, encoder=Mean)
    obs = sample(PLANES)
    torch.testing.assert_close(network(obs), network.mlp(obs.float().mean(dim=(2, 3)) / 2))


@pytest.mark.parametrize(
    "name", ["actor_critic", "squashed_gaussian", "simba", "actor_value", "mlp"]
)
def test_without_an_encoder_nothing_is_added(load: Load, name: str) -> None:
    network = build(load(f"network={name}").network, vector(3), ACTIONS)
    assert not any("encoder" in key for key in network.state_dict())
    obs = sample(vector(3))
    assert network.encoder(obs) is obs or torch.equal(network.encoder(obs), obs)
