"""Images in folders, one for each class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from research.batches import Example
from research.datasets.examples import Examples
from research.datasets.sources import one_line
from research.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")


def image_folder_examples(
    env: object,
    seed: int,
    *,
    root: str,
    size: Sequence[int] | None,
    channels: int | None,
    validation: float | Literal["own"] | None,
    split_seed: int,
    num_classes: int | None,
    batch_size: int,
    num_workers: int,
    device: str,
) -> Examples:
    """The images ``root/train/<class>/*``, labelled by the place of their class in the alphabet.

    Args:
        env: not used.
        seed: of the order.
        root: a folder.
        size: (H, W) to which every image is resized; None where all have one already.
        channels: 1 for grey, 3 for RGB, None for either as the files are.
        validation: ``own`` for ``root/val/<class>/*``, or as ``Examples`` takes it.
        split_seed, num_classes, batch_size, num_workers, device: as ``Examples`` takes them.

    Raises:
        ValueError: for sizes or channels that no image has, and as ``Examples`` raises it.
        UserError: a folder is missing or holds no images, or an image cannot be read.

    """
    check_form(size, channels)
    folder = Path(root) / "train"
    names = class_names(folder)
    labels = {name: label for label, name in enumerate(names)}
    if validation == "own":
        apart = ImageFolder(Path(root) / "val", labels, size=size, channels=channels)
    else:
        apart = validation
    return Examples(
        ImageFolder(folder, labels, size=size, channels=channels),
        apart,
        seed,
        split_seed=split_seed,
        num_classes=num_classes,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
    )


class ImageFolder:
    """The images of a folder's folders, in the order of their names.

    Args:
        folder: holds a folder for each class.
        labels: of every class, by its name.
        size: (H, W) or None.
        channels: 1, 3 or None.

    Raises:
        UserError: a class has no label, or a label no class, or a class no images.

    """

    def __init__(
        self,
        folder: Path,
        labels: Mapping[str, int],
        *,
        size: Sequence[int] | None,
        channels: int | None,
    ) -> None:
        self.name = str(folder)
        self.size = size
        self.channels = channels
        self.num_classes: int | None = len(labels)
        self.paths: list[str] = []
        targets = []
        for name in class_names(folder):
            if name not in labels:
                raise UserError(
                    f"{folder / name} is a class that training has not; it has "
                    f"{len(labels)}: {', '.join(list(labels)[:10])}{', ...' * (len(labels) > 10)}"
                )
            paths = sorted(str(p) for p in (folder / name).iterdir() if is_image(p))
            if not paths:
                raise UserError(f"{folder / name} holds no images ({', '.join(SUFFIXES)})")
            self.paths += paths
            targets += [labels[name]] * len(paths)
        self.targets = torch.tensor(targets)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        try:
            with Image.open(self.paths[index]) as image:
                obs = to_tensor(image, size=self.size, channels=self.channels)
        except Exception as error:  # a decoder may raise anything for a damaged file
            raise UserError(f"{self.paths[index]} cannot be read: {one_line(error)}") from error
        return Example(obs, self.targets[index])

    def name_example(self, index: int) -> str:
        return self.paths[index]


def class_names(folder: Path) -> list[str]:
    """The folders in ``folder``, sorted.

    Raises:
        UserError: there is none.

    """
    names = []
    if folder.is_dir():
        names = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if not names:
        what = "holds no folder of a class" if folder.is_dir() else "is not there"
        raise UserError(f"{folder} {what}; it must hold images as {folder}/<class>/<name>.png")
    return names


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image, and not one that macOS hides beside it."""
    return path.suffix.lower() in SUFFIXES and path.name[0] != "."


def check_form(size: Sequence[int] | None, channels: int | None) -> None:
    """Refuse a form that no image has with a ValueError."""
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size must be [H, W], each at least 1, or null, got {list(size)}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1, 3 or null, got {channels}")


def to_tensor(image: Image.Image, *, size: Sequence[int] | None, channels: int | None) -> Tensor:
    """The pixels, uint8 (C, H, W).

    Args:
        image: of 8 bits per channel; transparency is dropped.
        size: (H, W) to resize it to, bilinear and smoothed where it shrinks; None to leave it.
        channels: 1, 3 or None for what it has.

    Raises:
        ValueError: it has more bits.

    """
    if image.mode[0] in "IF":
        raise ValueError(f"its channels have more than 8 bits (mode {image.mode})")
    is_grey = channels == 1 or (channels is None and image.mode in ("1", "L", "LA"))
    image = image.convert("L" if is_grey else "RGB")
    if size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if is_grey else pixels.permute(2, 0, 1).contiguous()
