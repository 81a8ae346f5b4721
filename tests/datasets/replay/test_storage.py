"""Packed rows and the windows gathered from them."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from research.datasets.replay.storage import Leaf, RowStorage, Window, compute_row_bytes, leaf_of
from research.errors import UserError

LEAVES = {
    "action": Leaf((), torch.int64),
    "reward": Leaf((), torch.float32),
    "pixels": Leaf((3, 2, 2), torch.uint8),
    "state": Leaf((4,), torch.float32),
}


def make_storage(num_rows: int = 6, apart: Sequence[str] = ()) -> RowStorage:
    sizes = {"num_rows": num_rows, "num_staged": 1}
    return RowStorage(LEAVES, **sizes, device=torch.device("cpu"), on_disk=False, apart=apart)


def write_numbered(storage: RowStorage, rows: Sequence[int]) -> None:
    """Write rows whose elements all are the number of the row."""
    for row in rows:
        for name, leaf in LEAVES.items():
            storage.stage(name, np.full((1, *leaf.shape), row, np.float64))
        storage.write(slice(None), np.array([row]))


def read(window: Window, rows: Sequence[int]) -> list[Tensor]:
    return window.cut(window.gather(torch.tensor(rows)))


def test_leaves_of_one_type_lie_in_one_tensor() -> None:
    groups = make_storage(num_rows=6).groups
    assert {name: tuple(rows.shape) for name, rows in groups.items()} == {
        "int64": (6, 1),
        "float32": (6, 5),
        "uint8": (6, 12),
    }


def test_a_leaf_apart_has_a_tensor_of_its_own() -> None:
    groups = make_storage(apart=["reward"]).groups
    assert groups["reward"].shape == (6, 1)
    assert groups["float32"].shape == (6, 4)


@pytest.mark.parametrize("apart", [[], ["reward"]])
def test_a_window_reads_each_leaf_from_its_own_row_in_its_own_shape(apart: list[str]) -> None:
    storage = make_storage(apart=apart)
    write_numbered(storage, range(6))
    wanted = [("state", 2), ("pixels", 1), ("action", 1), ("state", 0), ("reward", 2)]
    leaves = read(Window(storage, wanted), [3, 0])
    for leaf, (name, ahead) in zip(leaves, wanted, strict=True):
        assert leaf.shape == (2, *LEAVES[name].shape)
        assert leaf.dtype == LEAVES[name].dtype
        assert (leaf[0] == 3 + ahead).all()
        assert (leaf[1] == ahead).all()


def test_what_was_read_is_not_changed_by_later_writes() -> None:
    storage = make_storage()
    write_numbered(storage, range(6))
    leaves = read(Window(storage, [("state", 0), ("pixels", 0)]), [1])
    write_numbered(storage, [0])
    storage.write(slice(None), np.array([1]))
    assert all((leaf == 1).all() for leaf in leaves)


def test_read_rows_share_the_rows_memory() -> None:
    storage = make_storage(num_rows=1000)
    write_numbered(storage, [7, 8])
    *_, pixels = storage.read_rows([(7, 9)])
    assert pixels.tolist() == [[7] * 12, [8] * 12]
    write_numbered(storage, [0])
    storage.write(np.array([0]), np.array([7]))
    assert pixels.tolist() == [[0] * 12, [8] * 12]


def test_filled_rows_are_those_that_were_read() -> None:
    source, target = make_storage(), make_storage()
    write_numbered(source, range(6))
    write_numbered(target, [0, 0, 0])
    parts = source.read_rows([(2, 4), (5, 6)])

    def fill(memory: memoryview) -> None:
        memory.cast("B")[:] = next(parts).cast("B")

    target.fill_rows([(2, 4), (5, 6)], fill)
    assert next(parts, None) is None
    (state,) = read(Window(target, [("state", 0)]), [0, 2, 3, 5])
    assert state[:, 0].tolist() == [0, 2, 3, 5]


def test_a_row_takes_the_bytes_that_were_forecast() -> None:
    actual = sum(
        rows.untyped_storage().nbytes() for rows in make_storage(num_rows=6).groups.values()
    )
    assert 6 * compute_row_bytes(LEAVES.values()) == actual


def test_an_array_of_another_shape_is_not_broadcast() -> None:
    with pytest.raises(UserError, match="gave state of shape"):
        make_storage().stage("state", np.zeros((1, 1)))


@pytest.mark.parametrize(
    ("space", "leaf"),
    [
        (spaces.Box(0, 1, (2, 3), np.float64), Leaf((2, 3), torch.float32)),
        (spaces.Box(0, 255, (3, 8, 8), np.uint8), Leaf((3, 8, 8), torch.uint8)),
        (spaces.Discrete(5), Leaf((), torch.int64)),
        (spaces.MultiDiscrete([2, 3]), Leaf((2,), torch.int64)),
        (spaces.MultiBinary(4), Leaf((4,), torch.int8)),
    ],
)
def test_every_type_is_stored_as_it_is_but_float64(space: spaces.Space, leaf: Leaf) -> None:
    assert leaf_of(space, "actions") == leaf


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Dict({"a": spaces.Discrete(2)}),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Box(0, 1, (2,), np.uint64),
    ],
)
def test_a_space_without_arrays_is_refused_by_name(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=r"^the actions must be arrays"):
        leaf_of(space, "actions")
