"""Handwritten digits: Alpaydin and Kaynak, 1998, UCI, https://archive.ics.uci.edu/dataset/80.

``digits.npz`` holds the test set of that page (CC BY 4.0), in the order in which scikit-learn
ships it: ``images``, uint8 (1797, 8, 8), from 0 to 16, and ``labels``, uint8 (1797,).
"""

from pathlib import Path

import numpy as np
import torch

from research.datasets.examples.dataset import Examples
from research.datasets.examples.sources import TensorSource
from research.ranges import NonNegativeInt, OpenFraction, PositiveInt

DIGITS = Path(__file__).with_suffix(".npz")


def digit_examples(
    env: object,
    seed: int,
    *,
    validation: OpenFraction | None,
    split_seed: NonNegativeInt,
    num_classes: PositiveInt | None,
    batch_size: PositiveInt,
    num_workers: NonNegativeInt,
    device: str,
) -> Examples:
    """1,797 images, uint8 (1, 8, 8), and the digits that they show.

    Their 17 shades from 0 to 16 are spread over 0 to 255, as in every other dataset of images.
    """
    with np.load(DIGITS) as file:
        shades, labels = file["images"], file["labels"]
    images = np.round(shades.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Examples(
        TensorSource("digits", torch.from_numpy(images), torch.from_numpy(labels).long()),
        validation,
        seed,
        split_seed=split_seed,
        num_classes=num_classes,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
    )
