"""Rows on disk, each written only once, so that the cost of a save depends on the new rows only.

A checkpoint refers to the first bytes of some files. These bytes never change: later rows are
written after them, or to another file, even if they overwrite older rows in memory. So every
checkpoint that is kept finds its rows unchanged, even if a later save is killed.
"""

import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from research.errors import DamagedFile
from research.files import flush_folder

CHUNK_BYTES = 2**24
"""Number of bytes written or read at a time."""

Fill: TypeAlias = Callable[[memoryview], None]
"""Reads the next bytes of a segment into memory."""


class Segment(NamedTuple):
    """A part of the journal: the first bytes of one file.

    Attributes:
        name: of the file.
        num_bytes: how many of its bytes count.
        checksum: their CRC-32.
        stops: how many rows of each ring had been written in total after this segment.

    """

    name: str
    num_bytes: int
    checksum: int
    stops: list[int]


class Block(NamedTuple):
    """Rows that were written together: of each ring, rows ``first`` to ``stop``, exclusive.

    The rows of a ring are numbered from 0 on; a row that overwrites another has a new number.
    """

    first: tuple[int, ...]
    stop: tuple[int, ...]


class Journal:
    """The rows of R rings, in files that rows are appended to.

    Args:
        folder: of the files; created when it is needed.
        num_rings: R.
        segment_bytes: a file that has reached this size is followed by another. A file is dropped
            only when all its rows have been overwritten, so about this much space is wasted.

    Attributes:
        stops: (R,), how many rows of each ring are on disk, deleted ones included.

    """

    def __init__(self, folder: Path, *, num_rings: int, segment_bytes: int) -> None:
        self.folder = folder
        self.segment_bytes = segment_bytes
        self.header = struct.Struct(f"<{2 * num_rings}q")
        self.segments: list[Segment] = []
        self.stops = [0] * num_rings
        self.is_open = False

    def append(self, block: Block, parts: Iterable[memoryview]) -> None:
        """Write ``parts``, the bytes of a block's rows, and flush them to the disk.

        Raises:
            OSError: they cannot be written; the blocks before are intact.

        """
        if not self.is_open or self.segments[-1].num_bytes >= self.segment_bytes:
            self.segments.append(Segment(self.make_file(), 0, 0, self.stops))
            self.is_open = True
        name, num_bytes, checksum, _ = self.segments[-1]
        with (self.folder / name).open("r+b", buffering=0) as file:
            file.seek(num_bytes)
            try:
                for part in (memoryview(self.header.pack(*block.first, *block.stop)), *parts):
                    for chunk in chunks(part):
                        write_all(file.fileno(), chunk)
                        checksum = zlib.crc32(chunk, checksum)
                        num_bytes += len(chunk)
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(self.segments[-1].num_bytes)
                raise
        self.stops = list(block.stop)
        self.segments[-1] = Segment(name, num_bytes, checksum, self.stops)

    def make_file(self) -> str:
        """Create an empty file, with a number above all in the folder; returns its name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(path.stem) for path in self.folder.glob("*.rows") if path.stem.isdecimal()]
        name = f"{max(numbers, default=-1) + 1:08d}.rows"
        (self.folder / name).touch(exist_ok=False)
        flush_folder(self.folder)
        return name

    def forget(self, first: Sequence[int]) -> None:
        """Drop files, except the last, that hold only rows below ``first`` (R,) of their ring."""
        kept = [
            segment
            for segment in self.segments[:-1]
            if any(stop > oldest for stop, oldest in zip(segment.stops, first, strict=True))
        ]
        self.segments = [*kept, *self.segments[-1:]]

    def state_dict(self) -> list[dict[str, Any]]:
        """The segments as plain numbers and text."""
        return [segment._asdict() for segment in self.segments]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Continue from a ``state_dict``; the next rows are written to a new file.

        Raises:
            DamagedFile: ``state`` is not a list of segments, or names a file outside the folder.

        """
        try:
            self.segments = [Segment(**segment) for segment in state]
        except TypeError as error:
            raise DamagedFile(f"{self.folder}: the list of its files is damaged") from error
        for segment in self.segments:
            if not re.fullmatch(r"\d{8,}\.rows", str(segment.name)):
                raise DamagedFile(f"{self.folder}: '{segment.name}' is no file of it")
        self.stops = self.segments[-1].stops if self.segments else [0] * len(self.stops)
        self.is_open = False

    def blocks(self) -> Iterator[tuple[Block, Fill]]:
        """Every block, in the order of writing, with the function that reads its rows.

        The rows must be read before the next block is asked for.

        Raises:
            DamagedFile: a file is missing, too short, or its checksum is wrong; the checksum is
                checked after the last block of the file.

        """
        for segment in self.segments:
            path = self.folder / segment.name
            try:
                if not path.is_file():  # opening a pipe would wait for its writer
                    raise FileNotFoundError
                with path.open("rb") as file:
                    reader = RowReader(file.fileno(), path, segment)
                    while reader.left:
                        header = bytearray(self.header.size)
                        reader.fill(memoryview(header))
                        numbers = self.header.unpack(header)
                        half = len(numbers) // 2
                        yield Block(numbers[:half], numbers[half:]), reader.fill
                    reader.check()
            except FileNotFoundError as error:
                raise DamagedFile(f"{path} is missing") from error


class RowReader:
    """Reads a segment from its start, adding up its checksum."""

    def __init__(self, descriptor: int, path: Path, segment: Segment) -> None:
        self.descriptor = descriptor
        self.path = path
        self.expected = segment.checksum
        self.left = segment.num_bytes
        self.checksum = 0

    def fill(self, target: memoryview) -> None:
        """Fill ``target`` with the next bytes."""
        if target.nbytes > self.left:
            raise DamagedFile(f"{self.path} is damaged: a block is longer than the file")
        self.left -= target.nbytes
        for chunk in chunks(target):
            done = 0
            while done < len(chunk):
                count = os.readv(self.descriptor, [chunk[done:]])
                if count == 0:
                    raise DamagedFile(f"{self.path} is cut short")
                done += count
            self.checksum = zlib.crc32(chunk, self.checksum)

    def check(self) -> None:
        """Raise ``DamagedFile`` if the bytes read are not those written."""
        if self.checksum != self.expected:
            raise DamagedFile(f"{self.path} is damaged: its checksum is wrong")


def chunks(part: memoryview) -> Iterator[memoryview]:
    """The bytes of ``part`` in pieces of at most ``CHUNK_BYTES``."""
    whole = part.cast("B") if part.nbytes else memoryview(b"")
    for start in range(0, len(whole), CHUNK_BYTES):
        yield whole[start : start + CHUNK_BYTES]


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all of ``data``, however many calls it takes."""
    while data:
        data = data[os.write(descriptor, data) :]
