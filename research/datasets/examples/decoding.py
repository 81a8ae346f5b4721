"""From an image to its pixels, as a viewer shows them."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transpositions that turn an image upright, by its EXIF orientation."""

WHITE_16 = 2**16 - 1
"""White in 16 bits."""


def to_tensor(image: Image.Image, *, size: Sequence[int] | None, channels: int | None) -> Tensor:
    """The pixels that a viewer shows, uint8 (C, H, W).

    Args:
        image: of any kind.
        size: (H, W) to resize it to, bilinear and smoothed where it shrinks; None to leave it.
        channels: 1, 3 or None for what it has.

    Raises:
        ValueError: its pixels are floats, or have more than 16 bits.

    """
    image = as_shown(image)
    if channels is not None:
        image = as_mode(image, "L" if channels == 1 else "RGB")
    if size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if image.mode == "L" else pixels.permute(2, 0, 1).contiguous()


def read_rgb(path: str) -> Image.Image:
    """The image of a file as a viewer shows it, in colour."""
    with Image.open(path) as image:
        return as_mode(as_shown(image), "RGB")


def as_shown(image: Image.Image) -> Image.Image:
    """A copy with 8 bits, grey (L) or RGB: upright, and opaque on white.

    Raises:
        ValueError: its pixels are floats, or have more than 16 bits.

    """
    image.load()  # which turns a TIFF
    turn = None
    with suppress(Exception):  # damaged EXIF data: the pixels are as good as others
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    image = on_white(to_bytes(image) if image.mode[0] in "IF" else image)
    shown = image if turn is None else image.transpose(turn)
    shown.info = {}  # so that nothing is applied a second time
    return shown


def to_bytes(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8."""
    if image.mode[0] == "F":
        raise ValueError("its pixels are floats, of unknown range; write it with 8 or 16 bits")
    values = np.array(image, np.int32)
    if values.min() < 0 or values.max() > WHITE_16:
        raise ValueError(
            f"its pixels are {values.min()} to {values.max()}, beyond 16 bits; write it with 16"
        )
    if "transparency" in image.info:
        values[values == image.info["transparency"]] = WHITE_16
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def on_white(image: Image.Image) -> Image.Image:
    """A copy that is grey (L) or RGB; what is transparent becomes white."""
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.getbands()[-1] not in "Aa" and "transparency" not in image.info:
        return image.convert(mode)
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(mode)


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in ``mode``, which may be its own."""
    return image if image.mode == mode else image.convert(mode)


@contextmanager
def silent_decoders() -> Iterator[None]:
    """Ignore Pillow's warnings, which name no file and do not concern the pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
