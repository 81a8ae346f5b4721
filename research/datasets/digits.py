"""Handwritten digits that scikit-learn brings: Alpaydin and Kaynak, 1998, UCI.

https://archive.ics.uci.edu/dataset/80
"""

import numpy as np
import torch
from sklearn.datasets import load_digits

from research.datasets.examples import Examples
from research.datasets.sources import TensorSource


def digit_examples(
    env: object,
    seed: int,
    *,
    validation: float | None,
    split_seed: int,
    num_classes: int | None,
    batch_size: int,
    num_workers: int,
    device: str,
) -> Examples:
    """1,797 images, uint8 (1, 8, 8), and the digits that they show.

    Their 17 shades from 0 to 16 are spread over 0 to 255, as in every other dataset of images.
    """
    shades, labels = load_digits(return_X_y=True)
    images = np.round(shades.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Examples(
        TensorSource("digits", torch.from_numpy(images), torch.from_numpy(labels)),
        validation,
        seed,
        split_seed=split_seed,
        num_classes=num_classes,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
    )
