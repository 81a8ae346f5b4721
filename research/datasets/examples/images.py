"""Images in folders, one for each class."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from research.batches import Example
from research.datasets.examples.dataset import Examples
from research.datasets.examples.decoding import silent_decoders, to_tensor
from research.errors import UserError, message_of
from research.ranges import NonNegativeInt, OpenFraction, PositiveInt

log = logging.getLogger(__name__)

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".heic", ".heif", ".jxl"),
)
"""Suffixes of still images; a file that Pillow has no decoder for is refused, not left out."""


def image_folder_examples(
    env: object,
    seed: int,
    *,
    root: str,
    size: tuple[PositiveInt, PositiveInt] | None,
    channels: Literal[1, 3] | None,
    validation: OpenFraction | Literal["own"] | None,
    split_seed: NonNegativeInt,
    num_classes: PositiveInt | None,
    batch_size: PositiveInt,
    num_workers: NonNegativeInt,
    device: str,
) -> Examples:
    """The images below ``root/train/<class>``, labelled in the alphabetical order of the classes.

    They are what a viewer shows: turned upright by their EXIF data, the first of several frames,
    and opaque, on white, since most drawings and scans are dark on a transparent ground. Grey of 16
    bits is divided by 257, so that its full range becomes that of 8 bits. Hidden files and folders
    are left out, and so are files of other suffixes than ``SUFFIXES``, which is logged.

    A class may have no images for validation, but must have some to learn from: otherwise they were
    not found, or the folder is left over.

    Args:
        env: not used.
        seed: of the order.
        root: a folder.
        size: (H, W) to which every image is resized; None if all have the same size.
        channels: 1 for grey, 3 for RGB, None for what the files have.
        validation: ``own`` for the images below ``root/val/<class>``, or as ``Examples`` takes it.
        split_seed, num_classes, batch_size, num_workers, device: as ``Examples`` takes them.

    Raises:
        ValueError: as ``Examples`` raises it.
        UserError: a folder is missing or holds no images, or an image cannot be read.

    """
    folder = Path(root) / "train"
    names = class_names(folder)
    labels = {name: label for label, name in enumerate(names)}
    training = ImageFolder(folder, labels, size=size, channels=channels)
    if missing := training.missing():
        raise UserError(
            f"{folder / missing[0]} holds no images ({', '.join(SUFFIXES)}), so that the class "
            "cannot be learned; add some, or remove the folder"
        )
    apart = validation
    if apart == "own":
        apart = ImageFolder(Path(root) / "val", labels, size=size, channels=channels)
        missing = apart.missing()
        if len(apart) and missing:
            log.info("%s has no images of %s, which no score shows", apart.name, some(missing))
    return Examples(
        training,
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
        UserError: a class has no label, or Pillow cannot read images of some suffix.

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
        self.labels = labels
        self.num_classes: int | None = len(labels)
        self.paths: list[str] = []
        targets = []
        others = Counter[str]()
        for name in class_names(folder):
            files = sorted(files_below(folder / name))
            images = [path for path in files if is_image(path)]
            others.update(suffix(path) or "no suffix" for path in files if not is_image(path))
            if images and name not in labels:
                raise UserError(
                    f"{folder / name} is a class that training has not; it has "
                    f"{len(labels)}: {some(list(labels))}"
                )
            self.paths += images
            targets += [labels[name] for _ in images]
        require_decoders(folder, self.paths)
        if others:
            kinds = some([f"{count} {kind}" for kind, count in others.most_common()])
            log.info("%s: left out what is no image by its name: %s", folder, kinds)
        loose = sorted(p.name for p in folder.iterdir() if is_image(p.name) and p.is_file())
        if loose:
            log.info("%s: left out what lies in no folder of a class: %s", folder, some(loose))
        self.targets = torch.tensor(targets, dtype=torch.int64)

    def missing(self) -> list[str]:
        """The classes without images."""
        present = set(self.targets.tolist())
        return [name for name, label in self.labels.items() if label not in present]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        try:
            with silent_decoders(), Image.open(self.paths[index]) as image:
                obs = to_tensor(image, size=self.size, channels=self.channels)
        except Exception as error:  # a decoder may raise anything for a damaged file
            raise UserError(f"{self.paths[index]} cannot be read: {message_of(error)}") from error
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


def files_below(folder: Path) -> Iterator[str]:
    """The files in ``folder`` and its folders that are not hidden; links are followed."""

    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        above = os.path.realpath(place)
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and not is_within(above, os.path.realpath(os.path.join(place, name)))
        ]
        yield from (os.path.join(place, name) for name in names if name[0] != ".")


def is_within(path: str, folder: str) -> bool:
    """Whether ``path`` is ``folder`` or below it; a link to such a folder would have no end."""
    return Path(path).is_relative_to(folder)


def suffix(path: str) -> str:
    """The suffix of a file's name in lower case, such as ``.jpg``."""
    return os.path.splitext(path)[1].lower()


def is_image(path: str) -> bool:
    """Whether a file's name is that of an image, and not one that macOS hides beside it."""
    return suffix(path) in SUFFIXES and os.path.basename(path)[0] != "."


def require_decoders(folder: Path, paths: Sequence[str]) -> None:
    """Refuse images that Pillow has no decoder for.

    Raises:
        UserError: names how many there are, and the first.

    """
    unknown = {suffix(path) for path in paths} - set(Image.registered_extensions())
    refused = [path for path in paths if suffix(path) in unknown]
    if refused:
        raise UserError(
            f"{folder}: Pillow cannot read {len(refused)} of the images "
            f"({', '.join(sorted(unknown))}), such as {refused[0]}; convert them to .jpg, or move "
            "them elsewhere"
        )


def some(names: Sequence[str]) -> str:
    """Up to ten of the names, in one line."""
    return ", ".join(names[:10]) + ", ..." * (len(names) > 10)
