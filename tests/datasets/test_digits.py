"""The digits that scikit-learn brings."""

import numpy as np
import torch
from gymnasium import spaces
from sklearn.datasets import load_digits

from research.config import build, check
from research.datasets.examples import Examples
from tests.conftest import Load


def make(load: Load, *overrides: str) -> Examples:
    cfg = load("dataset=digits", *overrides)
    check(cfg)
    return build(cfg.dataset, None, cfg.seed)


def test_digits_are_bytes_from_black_to_white(load: Load) -> None:
    dataset = make(load, "dataset.validation=null", "dataset.batch_size=1797")
    (batch,) = dataset.training_batches()
    shades, labels = load_digits(return_X_y=True)
    assert dataset.observation_space == spaces.Box(0, 255, (1, 8, 8), np.uint8)
    assert dataset.action_space == spaces.Discrete(10)
    assert batch.obs.dtype == torch.uint8
    np.testing.assert_array_equal((batch.obs.flatten(1) * (16 / 255)).round(), shades)
    assert (batch.obs.min(), batch.obs.max()) == (0, 255)
    np.testing.assert_array_equal(batch.target, labels)


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
