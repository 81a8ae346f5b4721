"""The small convolutional network: what it computes, and the sizes it takes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Discrete
from torch import Tensor, nn

from research.networks.cnn import CNN
from tests.networks.test_predictor import images

OPTIONS: dict[str, Any] = {"channels": [4, 6], "dropout": 0.0, "channels_last": False}


def make(*shape: int, **changes: Any) -> CNN:
    return CNN(images(*shape), Discrete(5), **(OPTIONS | changes))


def by_hand(network: CNN, x: Tensor) -> Tensor:
    """Scores in evaluation mode, without torch's layers."""
    convolutions = [layer for layer in network.stages if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in network.stages if isinstance(layer, nn.BatchNorm2d)]
    for index, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
        if index > 0:
            x = F.max_pool2d(x, 2)
        x = F.conv2d(x, convolution.weight, padding=1)
        mean, var = norm.running_mean, norm.running_var
        x = F.batch_norm(x, mean, var, norm.weight, norm.bias).clamp(min=0)
    head = network.head[1]
    assert isinstance(head, nn.Linear)
    return F.linear(x.mean(dim=(2, 3)), head.weight, head.bias)


def test_it_convolves_halves_and_averages() -> None:
    network, x = make(3, 9, 8), torch.randn(7, 3, 9, 8)
    network(x)  # moves the norms' statistics
    network.eval()
    torch.testing.assert_close(network(x), by_hand(network, x))


def test_the_layout_in_memory_changes_no_score() -> None:
    network, other, x = make(3, 8, 8), make(3, 8, 8, channels_last=True), torch.randn(7, 3, 8, 8)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(x), network(x))
    assert other.stages(x).is_contiguous(memory_format=torch.channels_last)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(last), network(x))


def test_dropout_is_for_training_alone() -> None:
    network, x = make(3, 8, 8, dropout=0.5), torch.randn(7, 3, 8, 8)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_the_smallest_image_has_one_pixel_in_the_last_stage() -> None:
    assert make(1, 4, 4, channels=[2, 2, 2])(torch.randn(3, 1, 4, 4)).shape == (3, 5)
    with pytest.raises(ValueError, match="images must be at least 4 x 4, got 3 x 9"):
        make(1, 3, 9, channels=[2, 2, 2])


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(ValueError, match=r"channels must be of at least one stage, got \[\]"):
        make(3, 8, 8, channels=[])
