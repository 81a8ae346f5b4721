"""Videos play in browsers at the right speed, and show the frames that went in."""

import io
import sys
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.util import img_mime_type_detector

from research.errors import UserError
from research.training.records.video import encode, encode_gif, join, pick_frames


def gradient(num_frames: int, height: int = 48, width: int = 64, start: int = 0) -> np.ndarray:
    """Frames (T, H, W, 3) that brighten from one to the next."""
    row = np.linspace(0, 60, width)[None, None, :, None]
    level = 20 + 8 * (np.arange(num_frames) + start)[:, None, None, None]
    return np.broadcast_to(row + level, (num_frames, height, width, 3)).astype(np.uint8)


def decode(video: bytes) -> list[tuple[Fraction, np.ndarray]]:
    """The time of every frame, and the frame."""
    with av.open(io.BytesIO(video)) as container:
        pictures = list(container.decode(video=0))
    return [
        (picture.pts * picture.time_base, picture.to_ndarray(format="rgb24"))
        for picture in pictures
        if picture.pts is not None and picture.time_base is not None
    ]


@settings(max_examples=20)
@given(
    num_frames=st.integers(1, 12),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    fps=st.sampled_from([Fraction(30), Fraction(100, 3), Fraction(1, 2), Fraction(125)]),
)
def test_an_mp4_shows_the_frames_at_their_times(
    num_frames: int, height: int, width: int, fps: Fraction
) -> None:
    frames = gradient(num_frames, height, width)
    video = encode(frames, fps)
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.height % 2 == stream.width % 2 == 0
        assert stream.frames == num_frames
        assert stream.average_rate == fps
    for index, (seconds, shown) in enumerate(decode(video)):
        assert seconds == pytest.approx(index / float(fps), abs=1e-4)
        error = shown[:height, :width].astype(float) - frames[index]
        assert np.abs(error).mean() < 6


def test_joined_videos_are_shown_after_each_other_as_they_are() -> None:
    parts = [encode(gradient(num, start=num), Fraction(100, 3)) for num in (5, 1, 9)]
    joined = decode(join(parts))
    expected = [frame for part in parts for _, frame in decode(part)]
    for index, ((seconds, frame), alone) in enumerate(zip(joined, expected, strict=True)):
        assert seconds == pytest.approx(index * 0.03, abs=1e-4)
        np.testing.assert_array_equal(frame, alone)


@pytest.mark.parametrize(("total", "expected"), [(9, [0, 3, 5, 8]), (3, [0, 1, 2]), (1, [0])])
def test_frames_are_picked_evenly(total: int, expected: list[int]) -> None:
    video = encode(gradient(total), Fraction(30))
    shown = decode(video)
    picked = pick_frames(video, 4)
    for frame, index in zip(picked, expected, strict=True):
        np.testing.assert_array_equal(frame, shown[index][1])


@pytest.mark.parametrize("fps", [Fraction(100), Fraction(30), Fraction(50, 4), Fraction(2)])
def test_a_gif_is_small_and_as_fast(fps: Fraction) -> None:
    content = encode_gif(gradient(40, 300, 400), fps)
    with Image.open(io.BytesIO(content)) as image:
        frames: Any = image
        seconds = 0.0
        for number in range(frames.n_frames):
            image.seek(number)
            seconds += image.info["duration"] / 1000
        assert image.size == (256, 192)
        assert seconds == pytest.approx(40 / float(fps), abs=1 / 15)
        assert frames.n_frames / seconds <= 16
    assert img_mime_type_detector.from_bytes(content) == "image/gif"


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"needs the package av: pip install -e '\.\[results\]'"):
        encode(gradient(2), Fraction(30))
