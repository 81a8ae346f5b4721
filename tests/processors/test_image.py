"""Images as floats: by the numbers given, or those of the training images."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from research.batches import Example
from research.processors.chain import Chain
from research.processors.image import StandardiseImages

SPACES = Box(0, 255, (2, 4, 3), np.uint8), Discrete(5)


def make(mean: Any = None, std: Any = None) -> StandardiseImages:
    return StandardiseImages(*SPACES, mean=mean, std=std)


def batches(count: int = 3, seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count * 5, 2, 4, 3), generator=generator, dtype=torch.uint8)
    images[:, 1] //= 2
    return [Example(part, torch.zeros(len(part))) for part in images.split(5)]


def test_given_numbers_are_used_and_kept() -> None:
    processor = make([0.25, 0.5], [0.5, 2.0])
    processor.fit(batches())
    images = batches(1)[0].obs
    expected = images.numpy() / 255.0
    expected = (expected - [[[0.25]], [[0.5]]]) / [[[0.5]], [[2.0]]]
    found = processor.process_obs(images)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_the_training_images_get_mean_0_and_deviation_1_in_every_channel() -> None:
    processor = make()
    processor.fit(batches())
    images = torch.cat([processor(batch).obs for batch in batches()])
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-6, rtol=0)
    std = images.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(std, torch.ones(2))


def test_what_was_found_is_loaded_and_not_found_again() -> None:
    processor, other = make(), make()
    processor.fit(batches())
    other.load_state_dict(processor.state_dict())
    other.fit(batches(seed=1))
    assert other.mean.equal(processor.mean)
    assert other.std.equal(processor.std)


def test_a_channel_that_never_changes_becomes_0() -> None:
    processor = make()
    batch = batches(1)[0]
    batch.obs[:, 0] = 77
    processor.fit([batch])
    images = processor(batch).obs
    torch.testing.assert_close(images[:, 0], torch.zeros(5, 4, 3), atol=1e-6, rtol=0)
    assert images.isfinite().all()


def test_behind_others_it_sees_their_images() -> None:
    class Darken(StandardiseImages):
        def process_obs(self, obs: Any) -> Any:
            return obs // 2

    links: Any = [
        lambda *spaces: Darken(*spaces, mean=[0.0, 0.0], std=[1.0, 1.0]),
        lambda *_: make(),
    ]
    chain = Chain(*SPACES, processors=links)
    chain.fit(batches())
    darker = make()
    darker.fit(Example(batch.obs // 2, batch.target) for batch in batches())
    assert chain.links[1].state_dict()["mean"].equal(darker.mean)


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (Box(0, 1, (3, 4, 4)), {}, "must be uint8 images .*; try processor=identity"),
        (Box(0, 255, (12,), np.uint8), {}, "must be uint8 images"),
        (SPACES[0], {"mean": [0.5], "std": [1.0, 1.0]}, r"mean must have 2 numbers, got \[0.5\]"),
        (SPACES[0], {"mean": [0.5, 0.5]}, "give mean and std"),
    ],
)
def test_what_does_not_fit_is_refused(space: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StandardiseImages(space, SPACES[1], **{"mean": None, "std": None, **options})
