"""Augmentations: each image by itself, in training alone, and nothing else."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from research.batches import Example
from research.processors.augment import Cutout, RandomFlip, Transform

SPACES = Box(0, 255, (2, 6, 5), np.uint8), Discrete(5)


def numbered(count: int = 64) -> Tensor:
    """Images of which every pixel is another number, but for the channel."""
    return torch.arange(1, 31, dtype=torch.uint8).view(1, 1, 6, 5).repeat(count, 2, 1, 1)


def test_each_image_is_mirrored_or_left() -> None:
    torch.manual_seed(0)
    images = numbered()
    flipped = RandomFlip(*SPACES, probability=0.25).augment(images)
    is_same = (flipped == images).flatten(1).all(dim=1)
    is_mirrored = (flipped == images.flip(-1)).flatten(1).all(dim=1)
    assert (is_same ^ is_mirrored).all()
    assert 5 <= is_mirrored.sum() <= 28


def test_probability_0_and_1_are_certain() -> None:
    images = numbered()
    assert RandomFlip(*SPACES, probability=0).augment(images).equal(images)
    assert RandomFlip(*SPACES, probability=1).augment(images).equal(images.flip(-1))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_square_of_all_channels_is_black(size: int) -> None:
    torch.manual_seed(0)
    images = numbered(500)
    cut = Cutout(*SPACES, size=size).augment(images)
    is_black = cut == 0
    assert cut[~is_black].equal(images[~is_black])
    assert is_black[:, 0].equal(is_black[:, 1])
    rows, columns = (is_black[:, 0].any(dim=dim).sum(dim=1) for dim in (2, 1))
    assert is_black[:, 0].sum(dim=(1, 2)).equal(rows * columns)
    assert rows.max() == columns.max() == size
    assert min(rows.min(), columns.min()) >= 1  # the middle lies inside
    assert is_black[:, 0].any(dim=0).all()


@pytest.mark.parametrize("make", [RandomFlip, Cutout, Transform])
def test_images_to_act_on_and_validate_are_left_alone(make: Any) -> None:
    option = {
        RandomFlip: {"probability": 1.0},
        Cutout: {"size": 3},
        Transform: {"transform": lambda images: images + 1},
    }[make]
    processor = make(*SPACES, **option)
    batch = Example(numbered(), torch.arange(64))
    assert not processor(batch).obs.equal(batch.obs)
    assert processor(batch).target.equal(batch.target)
    assert processor.process_obs(batch.obs).equal(batch.obs)
    assert processor.eval()(batch).obs.equal(batch.obs)


def test_a_transform_that_changes_the_type_is_refused() -> None:
    processor = Transform(*SPACES, transform=Tensor.float)
    with pytest.raises(ValueError, match=r"must keep .* torch.uint8, got .* torch.float32"):
        processor.augment(numbered())


def test_what_are_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match="observations must be images"):
        Cutout(Discrete(3), SPACES[1], size=2)
