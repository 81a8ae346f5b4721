"""The handwritten digits."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from research.config import build, check
from research.datasets.examples.dataset import Examples
from tests.conftest import Load


def make(load: Load, *overrides: str) -> Examples:
    cfg = load("dataset=digits", *overrides)
    check(cfg)
    return build(cfg.dataset, None, cfg.seed)


def test_digits_are_bytes_from_black_to_white(load: Load) -> None:
    dataset = make(load, "dataset.validation=null", "dataset.batch_size=1797")
    (batch,) = dataset.training_batches()
    shades = (batch.obs.flatten(1) * (16 / 255)).round()
    assert dataset.observation_space == spaces.Box(0, 255, (1, 8, 8), np.uint8)
    assert dataset.action_space == spaces.Discrete(10)
    assert batch.obs.dtype == torch.uint8
    assert (batch.obs.min(), batch.obs.max()) == (0, 255)
    assert shades[0, :24].tolist() == [
        *(0, 0, 5, 13, 9, 1, 0, 0),
        *(0, 0, 13, 15, 10, 15, 5, 0),
        *(0, 3, 15, 2, 0, 11, 8, 0),
    ]
    assert batch.target[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    # Of the UCI page; with the mean, as scikit-learn gives it, of all pixels.
    assert batch.target.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert shades.mean() == pytest.approx(4.884165, abs=1e-6)


def test_the_defaults_hold_a_fifth_out(load: Load) -> None:
    dataset = make(load)
    assert sum(len(batch.target) for batch in dataset.validation_batches()) == 359
    assert dataset.batches_per_epoch == -(-(1797 - 359) // 64)


def test_digits_can_be_told_apart_by_what_is_learned_from(load: Load) -> None:
    dataset = make(load)
    batches = [dataset.sample() for _ in range(dataset.batches_per_epoch)]
    obs = torch.cat([batch.obs for batch in batches]).flatten(1).float()
    target = torch.cat([batch.target for batch in batches])
    means = torch.stack([obs[target == digit].mean(0) for digit in range(10)])
    right = [
        torch.cdist(batch.obs.flatten(1).float(), means).argmin(1) == batch.target
        for batch in dataset.validation_batches()
    ]
    assert torch.cat(right).float().mean() > 0.85
