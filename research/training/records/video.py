"""Videos of frames (H, W, 3) uint8: MP4 as browsers play it, and GIF, which TensorBoard shows."""

import importlib
import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from research.errors import UserError

GIF_SIZE = 256
"""Largest height and width of a GIF; an event file holds one for each video."""

GIF_FPS = 15
"""Largest number of frames per second of a GIF."""


class Video:
    """An MP4 in memory that grows by frames of one size: H.264, yuv420p.

    That format needs an even height and width; the last row or column of an odd one is repeated.

    Args:
        fps: frames per second.

    Raises:
        UserError: the package av is missing.

    """

    def __init__(self, fps: Fraction) -> None:
        self.av = import_av()
        self.file = io.BytesIO()
        self.container = self.av.open(self.file, "w", format="mp4")
        self.stream = self.container.add_stream("libx264", rate=fps)
        self.stream.pix_fmt = "yuv420p"
        self.stream.options = {"preset": "veryfast", "bf": "0"}  # frames in their order, for join
        self.stream.codec_context.thread_count = 1  # training has the other CPUs
        self.num_frames = 0

    def add(self, frame: np.ndarray) -> None:
        """Append a frame."""
        height, width = frame.shape[:2]
        padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self.num_frames == 0:
            self.stream.height, self.stream.width = padded.shape[:2]
        picture = self.av.VideoFrame.from_ndarray(padded, format="rgb24")
        picture.pts, picture.time_base = self.num_frames, 1 / self.stream.codec_context.framerate
        self.container.mux(self.stream.encode(picture))
        self.num_frames += 1

    def close(self) -> bytes:
        """The video; nothing can be added any more."""
        self.container.mux(self.stream.encode(None))
        self.container.close()
        return self.file.getvalue()


def encode(frames: Iterable[np.ndarray], fps: Fraction) -> bytes:
    """The frames as MP4."""
    video = Video(fps)
    for frame in frames:
        video.add(frame)
    return video.close()


def join(videos: Sequence[bytes]) -> bytes:
    """One MP4 that shows these of ``Video`` after each other; they are not encoded again."""
    av = import_av()
    file, stream, begin = io.BytesIO(), None, 0
    with av.open(file, "w", format="mp4") as joined:
        for content in videos:
            with av.open(io.BytesIO(content)) as video:
                source = video.streams.video[0]
                stream = stream or joined.add_stream_from_template(source)
                for packet in video.demux(source):
                    if packet.dts is not None:  # the last one is empty
                        packet.pts, packet.dts = packet.pts + begin, packet.dts + begin
                        packet.stream = stream
                        joined.mux(packet)
                begin += source.duration
    return file.getvalue()


def pick_frames(video: bytes, count: int) -> list[np.ndarray]:
    """At most ``count`` evenly spaced frames of an MP4, the first and the last among them."""
    with import_av().open(io.BytesIO(video)) as container:
        total = container.streams.video[0].frames
        chosen = set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())
        pictures = enumerate(container.decode(video=0))
        return [picture.to_ndarray(format="rgb24") for i, picture in pictures if i in chosen]


def encode_gif(frames: np.ndarray, fps: Fraction) -> bytes:
    """The frames (T, H, W, 3) as an animated GIF, reduced to ``GIF_SIZE`` and ``GIF_FPS``."""
    every = -int(-fps // GIF_FPS)
    images = [Image.fromarray(frame) for frame in frames[::every]]
    for image in images:
        image.thumbnail((GIF_SIZE, GIF_SIZE))
    # Pillow's own choice of colours takes six times as long, and as much space.
    octree, no_dither = Image.Quantize.FASTOCTREE, Image.Dither.NONE
    first, *others = [image.quantize(256, octree, dither=no_dither) for image in images]
    file = io.BytesIO()
    # A GIF counts hundredths of a second; these add up to the right time.
    ends = [round(100 * every * number / fps) for number in range(len(images) + 1)]
    durations = [10 * (end - start) for start, end in pairwise(ends)]
    first.save(file, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return file.getvalue()


def import_av() -> Any:
    """The package av.

    Raises:
        UserError: it is missing.

    """
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise UserError(
            f"a video needs the package av: pip install -e '.[results]' ({error})"
        ) from error
