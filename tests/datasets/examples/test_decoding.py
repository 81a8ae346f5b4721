"""From an image to its pixels."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from research.datasets.examples.decoding import read_rgb, silent_decoders, to_tensor
from tests.datasets.examples.test_images import colours

ORIENTATION = 0x0112
TRANSPARENT = {
    "RGBA": [(9, 8, 7, 0), (9, 8, 7, 255)],
    "LA": [(9, 0), (9, 255)],
    "PA": [(9, 0), (9, 255)],
}


def as_stored(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    """An image after its way through a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def pixels(image: Image.Image, channels: int | None = None) -> torch.Tensor:
    return to_tensor(image, size=None, channels=channels)


@pytest.mark.parametrize("size", [(5, 9), (20, 30)])
def test_images_are_resized_as_torch_does(size: tuple[int, int]) -> None:
    pixels = colours(0, 10, 12)
    image = to_tensor(Image.fromarray(pixels), size=size, channels=3)
    expected = F.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None].float(),
        size=size,
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    torch.testing.assert_close(image.float(), expected[0], atol=1.0, rtol=0)


def test_grey_and_colour_are_told_apart() -> None:
    grey = colours(0)[:, :, 0]
    for mode, channels, shape in [("L", None, 1), ("L", 3, 3), ("RGB", None, 3), ("RGB", 1, 1)]:
        image = Image.fromarray(grey).convert(mode)
        obs = to_tensor(image, size=None, channels=channels)
        assert torch.equal(obs, torch.from_numpy(grey).expand(shape, -1, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_camera_was_held(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(colours(orientation))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    image = as_stored(stored, kind, exif=exif, **options)
    stored.getexif()[ORIENTATION] = orientation
    upright = torch.from_numpy(np.array(ImageOps.exif_transpose(stored)))
    assert torch.equal(pixels(image), upright.permute(2, 0, 1))


@pytest.mark.parametrize(
    ("offset", "damage", "shape"),
    [(0, b"XX", (3, 5, 4)), (8, b"\xff\xff", (3, 4, 5))],  # the header; the number of entries
)
def test_damaged_exif_data_is_used_as_far_as_it_can_be_read_and_not_warned_of(
    offset: int, damage: bytes, shape: tuple[int, ...]
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    file = io.BytesIO()
    Image.fromarray(colours(0)).save(file, "JPEG", exif=exif)
    data = file.getvalue()
    at = data.index(b"Exif\0\0") + 6 + offset
    data = data[:at] + damage + data[at + 2 :]
    with warnings.catch_warnings(record=True) as caught, silent_decoders():
        assert pixels(Image.open(io.BytesIO(data))).shape == shape
    assert not caught


@pytest.mark.parametrize("mode", TRANSPARENT)
def test_the_colour_of_a_transparent_pixel_is_white(mode: str) -> None:
    image = Image.new(mode, (2, 1))
    for x, value in enumerate(TRANSPARENT[mode]):
        image.putpixel((x, 0), value)
    clear, opaque = pixels(image, channels=3)[:, 0].T.tolist()
    assert clear == [255, 255, 255]
    assert opaque == np.array(image.convert("RGB"))[0, 1].tolist()


@pytest.mark.parametrize(
    ("mode", "transparent", "kind"),
    [("RGB", (9, 8, 7), "PNG"), ("L", 9, "PNG"), ("P", 9, "PNG"), ("P", 9, "GIF"), ("1", 0, "PNG")],
)
def test_a_colour_that_a_file_calls_transparent_is_white(
    mode: str, transparent: Any, kind: str
) -> None:
    image = Image.new(mode, (2, 1), transparent)
    if mode == "P":
        image.putpalette(range(48))
    image.putpixel((1, 0), (1, 2, 3) if mode == "RGB" else 1)
    shown = pixels(as_stored(image, kind, transparency=transparent), channels=3)
    assert shown[:, 0, 0].tolist() == [255, 255, 255]
    assert (shown[:, 0, 1] != 255).any() or mode == "1"


def test_what_is_half_transparent_is_mixed_with_white_and_what_is_opaque_is_itself() -> None:
    values = np.concatenate([colours(0), np.full((5, 4, 1), 255, np.uint8)], axis=2)
    assert torch.equal(pixels(Image.fromarray(values)), pixels(Image.fromarray(colours(0))))
    values[..., 3] = 51
    mixed = 0.2 * torch.from_numpy(values[..., :3]).permute(2, 0, 1) + 0.8 * 255
    torch.testing.assert_close(pixels(Image.fromarray(values)).float(), mixed, atol=1.0, rtol=0)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("TIFF", "<i4")]
)
def test_grey_of_16_bits_keeps_its_full_range(kind: str, dtype: str) -> None:
    values = np.arange(2**16).reshape(256, 256)
    image = as_stored(Image.fromarray(values.astype(dtype)), kind)
    expected = np.round(values / 257).astype(np.uint8)
    assert torch.equal(pixels(image), torch.from_numpy(expected)[None])


def test_a_grey_of_16_bits_that_a_file_calls_transparent_is_white() -> None:
    image = Image.fromarray(np.array([[1000, 2000]], np.uint16))
    assert pixels(as_stored(image, "PNG", transparency=1000)).tolist() == [[[255, 8]]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 2), np.float32), "its pixels are floats, of unknown range; write it with 8"),
        (np.array([[3, 2**16]], np.int32), "its pixels are 3 to 65536, beyond 16 bits; write it"),
        (np.array([[-1, 5]], np.int32), "its pixels are -1 to 5, beyond 16 bits; write it with"),
    ],
)
def test_what_has_no_bytes_is_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pixels(Image.fromarray(values))


def test_nothing_is_done_twice(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    Image.fromarray(colours(0)).save(tmp_path / "a.png", exif=exif, transparency=(255, 255, 255))
    once = read_rgb(str(tmp_path / "a.png"))
    assert torch.equal(pixels(once), torch.from_numpy(np.array(once)).permute(2, 0, 1))
    assert torch.equal(pixels(once).flip(1, 2), pixels(Image.fromarray(colours(0))))
