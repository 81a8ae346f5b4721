"""A picture of videos: for each a row of evenly spaced frames, with a caption."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from research.training.records.video import pick_frames

FRAME_WIDTH = 160
CAPTION_WIDTH = 140
GAP = 4
TEXT_SIZE = 14


def contact_sheet(videos: Sequence[bytes], captions: Sequence[str], num_frames: int) -> bytes:
    """The picture as PNG.

    Args:
        videos: MP4s with frames of one size.
        captions: a text of a few short lines for each.
        num_frames: largest number of frames of a video.

    """
    rows = [[scale(frame) for frame in pick_frames(video, num_frames)] for video in videos]
    height = rows[0][0].height + GAP
    columns = max(map(len, rows))
    size = CAPTION_WIDTH + columns * (FRAME_WIDTH + GAP), len(rows) * height + GAP
    sheet = Image.new("RGB", size, "lightgrey")
    font = ImageFont.load_default(TEXT_SIZE)
    draw = ImageDraw.Draw(sheet)
    for row, (images, caption) in enumerate(zip(rows, captions, strict=True)):
        draw.text((GAP, GAP + row * height), caption, fill="black", font=font)
        for column, image in enumerate(images):
            place = CAPTION_WIDTH + column * (FRAME_WIDTH + GAP), GAP + row * height
            sheet.paste(image, place)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def scale(frame: np.ndarray) -> Image.Image:
    """A frame in the width of the picture's."""
    height = max(1, round(frame.shape[0] * FRAME_WIDTH / frame.shape[1]))
    return Image.fromarray(frame).resize((FRAME_WIDTH, height))
