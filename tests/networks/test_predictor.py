"""Networks for targets: the sizes they take from the spaces, and the flattening perceptron."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from torch import nn

from research.networks.predictor import FlatMLP, count_outputs, float_shape, image_shape

OPTIONS: dict[str, Any] = {
    "hidden_dims": [8],
    "activation": nn.ELU,
    "layer_norm": True,
    "init": None,
}


def images(*shape: int) -> Box:
    """Float images of any values."""
    return Box(-np.inf, np.inf, shape, np.float32)


def test_the_flattening_perceptron_sees_every_value_in_storage_order() -> None:
    network = FlatMLP(images(2, 3, 4), Discrete(5), **OPTIONS)
    obs = torch.randn(7, 2, 3, 4)
    torch.testing.assert_close(network(obs), network.mlp(obs.reshape(7, 24)))
    assert network(obs).shape == (7, 5)


@pytest.mark.parametrize(
    ("space", "expected"), [(Discrete(3), 3), (Box(-np.inf, np.inf, (4,), np.float32), 4)]
)
def test_a_head_is_sized_by_the_targets(space: gymnasium.Space, expected: int) -> None:
    assert count_outputs(space) == expected


@pytest.mark.parametrize(
    "space",
    [
        Discrete(3, start=1),
        MultiDiscrete([2, 3]),
        Box(-1, 1, (2, 2), np.float32),
        Box(0, 9, (2,), np.int64),
    ],
)
def test_other_answers_are_refused(space: gymnasium.Space) -> None:
    with pytest.raises(ValueError, match="targets must be classes from 0 on, or flat floats"):
        count_outputs(space)


@pytest.mark.parametrize(
    ("space", "hint"),
    [
        (
            Box(0, 255, (3, 8, 8), np.uint8),
            "try processor=image, network=mlp network/encoder=nature or a network for such "
            "observations",
        ),
        (Box(0, 255, (8,), np.uint8), "try a network for such observations"),
        (Box(-1, 1, (), np.float32), "try a network for such observations"),
        (
            Dict({"image": images(3, 8, 8)}),
            "try network=mlp network/encoder=multi_input or a network for such observations",
        ),
    ],
)
def test_observations_that_are_no_floats_are_refused(space: gymnasium.Space, hint: str) -> None:
    with pytest.raises(ValueError, match="observations must be floats") as caught:
        float_shape(space)
    assert str(caught.value).endswith(hint)


def test_images_are_refused_that_are_none_or_too_small() -> None:
    assert image_shape(images(3, 4, 5), min_side=4) == (3, 4, 5)
    with pytest.raises(ValueError, match=r"must be images \(C, H, W\), got \(17,\); try network=m"):
        image_shape(images(17), min_side=1)
    with pytest.raises(ValueError, match="images must be at least 5 x 5, got 4 x 5"):
        image_shape(images(3, 4, 5), min_side=5)
