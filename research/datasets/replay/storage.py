"""Rows of several arrays, packed so that a batch of them is one copy per data type."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from research.datasets.replay.journal import CHUNK_BYTES, Fill
from research.errors import UserError
from research.machine.disk import map_file

DTYPES: dict[np.dtype[Any], torch.dtype] = {
    np.dtype(name): getattr(torch, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32")
} | {np.dtype("float64"): torch.float32}
"""The type that each type of array is stored as: the same, except float64 as float32."""


class Leaf(NamedTuple):
    """Shape and type of one array of a row."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def leaf_of(space: gymnasium.Space[Any], where: str) -> Leaf:
    """Shape and type that elements of a space are stored as.

    Raises:
        ValueError: the elements are not arrays of a fixed size and a type in ``DTYPES``; the
            message calls them ``where``.

    """
    dtype = None if space.dtype is None else DTYPES.get(space.dtype)
    if space.shape is None or dtype is None:
        raise ValueError(
            f"the {where} must be arrays of a fixed size (Box, Discrete, MultiDiscrete, "
            f"MultiBinary), got {space}"
        )
    return Leaf(space.shape, dtype)


def compute_row_bytes(leaves: Iterable[Leaf]) -> int:
    """Bytes that one row takes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


class Column(NamedTuple):
    """The place of a leaf in a row: its group, its first element, and one past its last."""

    group: str
    start: int
    stop: int


class RowStorage:
    """Rows of named leaves, in host or GPU memory; their content is undefined until written.

    All leaves of one data type lie side by side, in the order given, in one tensor (num_rows,
    width), here called a group. New rows are first staged on the host, then written together.

    Args:
        leaves: what a row holds.
        num_rows: how many rows there are.
        num_staged: how many rows can be staged at a time.
        device: where the rows are.
        on_disk: whether they are in temporary files, mapped into host memory.
        apart: leaves that get a group to themselves, whatever their type.

    """

    def __init__(
        self,
        leaves: Mapping[str, Leaf],
        *,
        num_rows: int,
        num_staged: int,
        device: torch.device,
        on_disk: bool,
        apart: Sequence[str],
    ) -> None:
        self.leaves = dict(leaves)
        self.columns: dict[str, Column] = {}
        dtypes: dict[str, torch.dtype] = {}
        widths: dict[str, int] = {}
        for name, leaf in leaves.items():
            group = name if name in apart else str(leaf.dtype).removeprefix("torch.")
            start = widths.get(group, 0)
            dtypes[group], widths[group] = leaf.dtype, start + leaf.size
            self.columns[name] = Column(group, start, widths[group])
        self.groups = {
            group: map_file((num_rows, width), dtypes[group])
            if on_disk
            else torch.empty(num_rows, width, dtype=dtypes[group], device=device)
            for group, width in widths.items()
        }
        self.device = next((rows.device for rows in self.groups.values()), device)  # with its index
        # Writing a few small rows through numpy costs a fraction of what it costs through torch.
        self._arrays = {
            group: rows.numpy() for group, rows in self.groups.items() if device.type == "cpu"
        }
        self._staging = {
            group: torch.zeros(num_staged, width, dtype=dtypes[group]).numpy()
            for group, width in widths.items()
        }
        # And whole rows, which numpy copies in one piece, cost a fraction of rows of elements.
        self._whole_rows = [
            (as_elements(self._staging[group]), as_elements(rows))
            for group, rows in self._arrays.items()
            if rows.size
        ]
        self._staged_leaves = {
            name: self._staging[group][:, start:stop].reshape(num_staged, *leaves[name].shape)
            for name, (group, start, stop) in self.columns.items()
        }

    def stage(self, name: str, values: np.ndarray) -> None:
        """Set one leaf of all staged rows, (num_staged, ...)."""
        staged = self._staged_leaves[name]
        if values.shape != staged.shape:
            raise UserError(
                f"the environments gave {name} of shape {values.shape}, but their spaces say "
                f"{staged.shape}"
            )
        staged[...] = values

    def write(self, staged: np.ndarray | slice, rows: np.ndarray) -> None:
        """Copy the staged rows with the numbers ``staged`` (K,) to ``rows`` (K,), int64."""
        for source, target in self._whole_rows:
            target[rows] = source[staged]
        if not self._arrays:
            index = send(torch.from_numpy(rows), self.device)
            for group, target in self.groups.items():
                values = torch.from_numpy(self._staging[group][staged])
                target.index_copy_(0, index, send(values, self.device))

    def column(self, name: str) -> Tensor:
        """A scalar leaf of all rows, (num_rows,); shares memory with them."""
        group, start, _ = self.columns[name]
        return self.groups[group][:, start]

    def read_rows(self, spans: Iterable[tuple[int, int]]) -> Iterator[memoryview]:
        """The bytes of the rows in every range, from start to stop, group by group.

        Rows in host memory are not copied: use the bytes before the next ``write``.
        """
        for start, stop in spans:
            for group, rows in self.groups.items():
                if group in self._arrays:
                    yield self._arrays[group][start:stop].view(np.uint8).data
                else:
                    for piece in rows[start:stop].split(rows_per_chunk(rows)):
                        yield piece.cpu().numpy().view(np.uint8).data

    def fill_rows(self, spans: Iterable[tuple[int, int]], fill: Fill) -> None:
        """Fill the rows in every range by ``fill``, in the order of ``read_rows``."""
        for start, stop in spans:
            for group, rows in self.groups.items():
                if group in self._arrays:
                    fill(self._arrays[group][start:stop].view(np.uint8).data)
                else:
                    for piece in rows[start:stop].split(rows_per_chunk(rows)):
                        host = torch.empty_like(piece, device="cpu")
                        fill(host.numpy().view(np.uint8).data)
                        piece.copy_(host)

    def repeat(self, source: int, target: int, count: int) -> None:
        """Copy the ``count`` rows that start at ``source`` to those that start at ``target``."""
        for rows in self.groups.values():
            rows[target : target + count] = rows[source : source + count]


def send(values: Tensor, device: torch.device) -> Tensor:
    """A copy of a tensor of the host on a GPU, made without waiting for the GPU."""
    return values.pin_memory().to(device, non_blocking=True)


def as_elements(rows: np.ndarray) -> np.ndarray:
    """The same memory as one element (num_rows,) of many bytes per row."""
    return rows.view(f"V{rows.shape[1] * rows.itemsize}")[:, 0]


def rows_per_chunk(rows: Tensor) -> int:
    """Number of rows copied between GPU and host at a time."""
    return max(1, CHUNK_BYTES // max(1, rows[:1].nbytes))


class Piece(NamedTuple):
    """The part of a window that lies in one group, gathered with one copy.

    Attributes:
        windows: (num_rows, width of the window), overlapping views of a group.
        sizes: widths of the parts that a window is cut into.
        leaves: for each wanted leaf the index of its part, its index among all wanted, its shape.

    """

    windows: Tensor
    sizes: list[int]
    leaves: list[tuple[int, int, tuple[int, ...]]]


class Window:
    """Some leaves of a row and of the rows after it, gathered with one copy per group.

    Rows are contiguous in memory. All elements between the first and the last wanted one of a group
    are copied as one range, so wanted leaves should be neighbours.

    Args:
        storage: the rows.
        wanted: for each leaf its name, and how many rows after the given row it is read.

    """

    def __init__(self, storage: RowStorage, wanted: Sequence[tuple[str, int]]) -> None:
        self._num_wanted = len(wanted)
        self._pieces = []
        for group in storage.groups:
            cuts = []
            for number, (name, ahead) in enumerate(wanted):
                column, shift = storage.columns[name], ahead * storage.groups[group].shape[1]
                if column.group == group:
                    cuts.append((column.start + shift, column.stop + shift, number))
            if cuts:
                shapes = [storage.leaves[name].shape for name, _ in wanted]
                self._pieces.append(make_piece(storage.groups[group], sorted(cuts), shapes))

    def __len__(self) -> int:
        return len(self._pieces)

    def gather(self, rows: Tensor) -> list[Tensor]:
        """The windows at ``rows`` (B,), one tensor per group, to be cut by ``cut``."""
        return [piece.windows.index_select(0, rows) for piece in self._pieces]

    def cut(self, memory: Sequence[Tensor]) -> list[Tensor]:
        """The wanted leaves (B, ...), views of the gathered tensors; ignores any after those."""
        leaves = list(memory[:1]) * self._num_wanted
        for window, (_, sizes, wanted) in zip(memory, self._pieces, strict=False):
            # "unsafe" only for gradients, which nothing here has
            parts = window.unsafe_split_with_sizes(sizes, 1)
            for part, number, shape in wanted:
                leaves[number] = parts[part] if len(shape) == 1 else parts[part].view(-1, *shape)
        return leaves


def make_piece(
    rows: Tensor, cuts: Sequence[tuple[int, int, int]], shapes: Sequence[tuple[int, ...]]
) -> Piece:
    """The piece for ``cuts``: first element, one past the last, and index of each wanted leaf."""
    first, last = cuts[0][0], cuts[-1][1]
    sizes, leaves, position = [], [], first
    for start, stop, number in cuts:
        assert start >= position, "a leaf was asked for twice"
        if start > position:
            sizes.append(start - position)
        leaves.append((len(sizes), number, shapes[number]))
        sizes.append(stop - start)
        position = stop
    windows = rows.view(-1)[first:].unfold(0, last - first, rows.shape[1])
    return Piece(windows, sizes, leaves)
