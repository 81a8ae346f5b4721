"""Observations for a policy: as an environment gives them, standardised, or told to be neither."""

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from research.results.observations import to_batch
from research.training.saving.spaces import Spaces


def make_spaces(own: Dict, standard: Dict) -> Spaces:
    """Those of a policy of images and vectors."""
    actions = Box(-1, 1, (1,), np.float32)
    return Spaces(standard, actions, own, actions)


@pytest.mark.parametrize("shape", [(9, 8, 3), (9, 8)])
@pytest.mark.parametrize("lead", [(), (5,)])
def test_images_may_be_as_the_environment_gives_them_or_as_they_were_standardised(
    lead: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    own = Dict(image=Box(0, 255, shape, np.uint8), sign=Box(-1, 1, (1,), np.float32))
    channels = shape[2:] or (1,)
    standard = Dict(image=Box(0, 255, (*channels, 9, 8), np.uint8), sign=own["sign"])
    spaces = make_spaces(own, standard)
    image = np.random.default_rng(0).integers(256, size=(*lead, *shape), dtype=np.uint8)
    first = np.moveaxis(image.reshape(*lead, 9, 8, *channels), -1, -3)
    for shown in (image, first):
        batch, is_single = to_batch(spaces, {"image": shown, "sign": np.ones((*lead, 1))})
        np.testing.assert_array_equal(batch["image"], first.reshape(-1, *channels, 9, 8))
        assert is_single == (lead == ())


@pytest.mark.parametrize("lead", [(), (4,), (5,)])
@pytest.mark.parametrize(
    ("shape", "standard"), [((9, 8), (4, 9, 8)), ((9, 8), (9, 8)), ((9, 8, 3), (9, 8, 3))]
)
def test_what_an_environment_stacked_or_left_as_it_is_is_taken_so(
    lead: tuple[int, ...], shape: tuple[int, ...], standard: tuple[int, ...]
) -> None:
    sign = Box(-1, 1, (1,), np.float32)
    own, seen = (Dict(sign=sign, view=Box(0, 255, each, np.uint8)) for each in (shape, standard))
    view = np.zeros((*lead, *standard), np.uint8)
    obs = {"sign": np.ones((*lead, 1)), "view": view}
    batch, is_single = to_batch(make_spaces(own, seen), obs)
    assert batch["view"].shape == (*(lead or (1,)), *standard)
    assert is_single == (lead == ())


@pytest.mark.parametrize("lead", [(), (5,)])
def test_a_part_of_another_shape_is_refused(lead: tuple[int, ...]) -> None:
    sign = Box(-1, 1, (1,), np.float32)
    own = Dict(sign=sign, view=Box(0, 255, (9, 8, 1), np.uint8))
    stacked = Dict(sign=sign, view=Box(0, 255, (3, 9, 8), np.uint8))
    obs = {"sign": np.ones((*lead, 1)), "view": np.zeros((*lead, 9, 8, 1), np.uint8)}
    with pytest.raises(
        ValueError, match=r"obs\['view'\] has shape .*; the policy takes \(3, 9, 8\)"
    ):
        to_batch(make_spaces(own, stacked), obs)


@pytest.mark.parametrize(
    ("obs", "words"),
    [
        (np.zeros(3), "obs must be a dict of sign, view, got ndarray"),
        ({"sign": np.zeros(1)}, "obs lacks view; the policy takes sign, view"),
        (
            {"sign": np.zeros((2, 1)), "view": np.zeros((3, 1, 9, 8), np.uint8)},
            "as many of every part, got 2",
        ),
        (
            {"sign": np.zeros((2, 1)), "view": np.zeros((1, 9, 8), np.uint8)},
            "or E such of every part",
        ),
        (
            {"sign": np.zeros(1), "view": np.full((1, 9, 8), 0.5)},
            r"obs\['view'\] holds 0.5; the policy takes uint8",
        ),
        (
            {"sign": np.full(1, np.nan), "view": np.zeros((1, 9, 8), np.uint8)},
            r"obs\['sign'\] is NaN or infinite",
        ),
        (
            {"sign": np.zeros(1), "view": np.full((1, 9, 8), 300)},
            r"obs\['view'\] holds 300; the policy takes uint8",
        ),
    ],
)
def test_what_is_no_observation_of_a_dict_is_refused(obs: Any, words: str) -> None:
    space = Dict(sign=Box(-1, 1, (1,), np.float32), view=Box(0, 255, (1, 9, 8), np.uint8))
    with pytest.raises(ValueError, match=words):
        to_batch(make_spaces(space, space), obs)
