"""Residual networks: published sizes, what a block computes and how it begins, both stems."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Discrete
from omegaconf import DictConfig
from torch import Tensor, nn

from research.config import build
from research.networks.resnet import Residual, ResNet
from tests.conftest import Load
from tests.networks.test_predictor import images

OPTIONS: dict[str, Any] = {
    "block": "basic",
    "depths": [1, 1],
    "width": 4,
    "channels_last": False,
}


def make(*shape: int, **changes: Any) -> ResNet:
    return ResNet(images(*shape), Discrete(5), **(OPTIONS | changes))


def load_network(load: Load, name: str) -> DictConfig:
    return load(f"network={name}").network


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "side", "num_classes", "expected"),
    [
        ("resnet18", 224, 1000, 11_689_512),  # torchvision's, as its documentation has them
        ("resnet34", 224, 1000, 21_797_672),
        ("resnet50", 224, 1000, 25_557_032),
        ("resnet18", 32, 10, 11_173_962),  # https://github.com/kuangliu/pytorch-cifar
    ],
)
def test_sizes_are_the_published_ones(
    load: Load, name: str, side: int, num_classes: int, expected: int
) -> None:
    with torch.device("meta"):
        network = build(load_network(load, name), images(3, side, side), Discrete(num_classes))
    assert count(network) == expected


@torch.no_grad()
def shuffle_norms(module: Residual) -> Residual:
    """Give every norm other gains, offsets and statistics than it begins with."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            for values in (layer.weight, layer.bias, layer.running_mean):
                nn.init.normal_(values)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return module.eval()


def apply(layers: list[nn.Module], x: Tensor, strides: list[int]) -> Tensor:
    """Convolutions and norms in turns, with a ReLU between but not after them."""
    for index, stride in enumerate(strides):
        convolution, norm = layers[2 * index : 2 * index + 2]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        x = x.clamp(min=0) if index else x
        x = F.conv2d(x, convolution.weight, stride=stride, padding=convolution.weight.shape[2] // 2)
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return x


@pytest.mark.parametrize(("is_bottleneck", "strides"), [(False, [2, 1]), (True, [1, 2, 1])])
def test_a_block_adds_its_layers_to_a_projection(is_bottleneck: bool, strides: list[int]) -> None:
    block = shuffle_norms(Residual(3, 4, 2, is_bottleneck=is_bottleneck))
    x = torch.randn(5, 3, 8, 8)
    layers = [layer for layer in block.body.children() if not isinstance(layer, nn.ReLU)]
    expected = apply(layers, x, strides) + apply(list(block.shortcut.children()), x, [2])
    torch.testing.assert_close(block(x), expected.clamp(min=0))
    assert block(x).shape == (5, 16 if is_bottleneck else 4, 4, 4)


@pytest.mark.parametrize("is_bottleneck", [False, True])
def test_a_block_that_keeps_the_shape_begins_as_the_identity(is_bottleneck: bool) -> None:
    channels = 16 if is_bottleneck else 4
    x = torch.rand(5, channels, 8, 8)
    assert torch.equal(Residual(channels, 4, 1, is_bottleneck=is_bottleneck)(x), x)


@pytest.mark.parametrize(("side", "expected"), [(8, 8), (63, 63), (64, 16), (96, 24)])
def test_small_images_keep_their_resolution_in_the_stem(side: int, expected: int) -> None:
    features = make(3, side, 100).stem(torch.randn(1, 3, side, 100))
    assert features.shape[2] == expected


def test_stages_double_the_channels_and_halve_the_image() -> None:
    network = make(1, 16, 16, block="bottleneck", depths=[2, 1, 1])
    shapes = []
    x = network.stem(torch.randn(1, 1, 16, 16))
    for block in network.blocks:
        shapes.append(tuple((x := block(x)).shape[1:]))
    assert shapes == [(16, 16, 16), (16, 16, 16), (32, 8, 8), (64, 4, 4)]


def test_the_head_sees_the_mean_over_the_image() -> None:
    network, x = make(3, 8, 8), torch.randn(6, 3, 8, 8)
    network.eval()
    features = network.blocks(network.stem(x)).flatten(2).sum(2) / 16
    torch.testing.assert_close(network(x), network.head(features))


def test_the_layout_in_memory_changes_no_score() -> None:
    network, other, x = make(3, 8, 8), make(3, 8, 8, channels_last=True), torch.randn(7, 3, 8, 8)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(x), network(x))
    assert other.get_parameter("blocks.0.body.0.weight").is_contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": []}, r"depths must be of at least one stage, got \[\]"),
        ({"depths": [1] * 5}, "images must be at least 16 x 16, got 8 x 8"),
    ],
)
def test_what_it_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(3, 8, 8, **changes)
