"""Shifts: each image by itself, as the interpolation of the paper's code gives them."""

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from research.batches import Transition
from research.processors.random_shift import RandomShift, shift_images

IMAGES = Box(0, 255, (3, 10, 12), np.uint8)
ACTIONS = Box(-1, 1, (2,), np.float32)


def make_images(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (size, 3, 10, 10), dtype=torch.uint8, generator=generator)


def make_batch(size: int) -> Transition:
    images = torch.randint(256, (2, size, 3, 10, 12), dtype=torch.uint8)
    return Transition(
        images[0], torch.zeros(size, 2), torch.zeros(size), torch.ones(size), images[1]
    )


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6),
    st.integers(0, 2**20),
)
def test_a_shift_is_what_bilinear_sampling_of_the_padded_image_gives(
    shifts: list[tuple[int, int]], seed: int
) -> None:
    """The arithmetic of the paper: a grid over the padded image, moved by whole pixels."""
    pad, size = 2, 10
    images = make_images(len(shifts), seed)
    down, right = torch.tensor(shifts).T
    padded = F.pad(images.float(), (pad,) * 4, mode="replicate")
    step = 2 / (size + 2 * pad)
    first = -1 + step / 2
    line = first + step * torch.arange(size)
    x = line[None, None, :] + step * right[:, None, None]
    y = line[None, :, None] + step * down[:, None, None]
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1)
    expected = F.grid_sample(padded, grid, align_corners=False)
    shifted = shift_images(images, down, right, pad=pad)
    assert shifted.dtype == torch.uint8
    torch.testing.assert_close(shifted.float(), expected, atol=1e-2, rtol=0)


def test_no_shift_leaves_the_image() -> None:
    images = make_images(3)
    middle = torch.full((3,), 2)
    assert torch.equal(shift_images(images, middle, middle, pad=2), images)


def test_each_image_is_shifted_by_itself_and_evenly_in_all_directions() -> None:
    processor = RandomShift(IMAGES, ACTIONS, pad=1)
    image = torch.arange(120, dtype=torch.uint8).reshape(1, 1, 10, 12).expand(9000, 3, 10, 12)
    centers = processor.shift(image)[:, 0, 5, 5].long()
    found, counts = centers.unique(return_counts=True)
    assert found.tolist() == [65 + 12 * down + right for down in (-1, 0, 1) for right in (-1, 0, 1)]
    assert ((counts - 1000).abs() < 150).all()


def test_observation_and_next_observation_are_shifted_independently() -> None:
    batch = make_batch(200)
    batch = batch._replace(next_obs=batch.obs)
    shifted = RandomShift(IMAGES, ACTIONS, pad=4)(batch)
    same = (shifted.obs == shifted.next_obs).flatten(1).all(dim=1)
    assert same.float().mean() < 0.1
    assert torch.equal(shifted.reward, batch.reward)


def test_nothing_is_shifted_to_act_or_to_evaluate() -> None:
    processor, batch = RandomShift(IMAGES, ACTIONS, pad=4), make_batch(5)
    assert processor.process_obs(batch.obs) is batch.obs
    assert torch.equal(processor.eval()(batch).obs, batch.obs)


@pytest.mark.parametrize(
    ("space", "pad", "reason"),
    [
        (Box(-1, 1, (3,), np.float32), 4, r"must be images \(C, H, W\)"),
        (gymnasium.spaces.Discrete(3), 4, r"must be images \(C, H, W\)"),
        (IMAGES, 10, "pad must be below the image's size, got 10"),
    ],
)
def test_what_cannot_be_shifted_is_refused(space: gymnasium.Space, pad: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RandomShift(space, ACTIONS, pad=pad)
