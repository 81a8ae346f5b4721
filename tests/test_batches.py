"""Batches are copied as they are, and memory that parts share only once."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from research.batches import copy_shared, to_device

CPU = torch.device("cpu")


class Batch(NamedTuple):
    obs: dict[str, Tensor]
    action: Tensor


def copying(copied: list[Tensor], tensor: Tensor) -> Tensor:
    copied.append(tensor)
    return tensor.clone()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32, torch.int64])
def test_parts_of_the_same_memory_are_copied_once(dtype: torch.dtype) -> None:
    window = torch.arange(5 * 12).reshape(5, 12).to(dtype)
    batch = Batch({"first": window[:, :8], "last": window[:, 4:]}, torch.zeros(5))
    copied: list[Tensor] = []
    copy = copy_shared(lambda tensor: copying(copied, tensor), batch)
    assert sum(tensor.nbytes for tensor in copied) == window.nbytes + batch.action.nbytes
    assert copy.obs["first"].equal(batch.obs["first"])
    assert copy.obs["last"].equal(batch.obs["last"])
    copy.obs["first"].zero_()
    assert window.any()
    assert not copy.obs["last"][:, :4].any()


def test_memory_that_a_batch_is_a_small_part_of_is_not_copied_as_a_whole() -> None:
    everything = torch.rand(1000, 3)
    copied: list[Tensor] = []
    batch = (everything[10:20], everything[30:40])
    copy = copy_shared(lambda tensor: copying(copied, tensor), batch)
    assert [tensor.shape for tensor in copied] == [(10, 3)] * 2
    assert all(map(torch.equal, copy, batch))


@given(st.data())
def test_views_of_any_form_keep_their_values(data: st.DataObject) -> None:
    memory = torch.arange(60, dtype=torch.int16)
    views = []
    for _ in range(data.draw(st.integers(1, 6))):
        start, columns = data.draw(st.integers(0, 20)), data.draw(st.integers(1, 8))
        view = memory[start : start + 4 * columns].view(4, columns)
        views.append(data.draw(st.sampled_from([view, view.T, view[1:], view[:, :1]])))
    copies = copy_shared(Tensor.clone, tuple(views))
    assert all(map(torch.equal, copies, views))


def test_nothing_is_copied_that_is_there() -> None:
    batch = (torch.rand(3, 2), torch.rand(3))
    assert all(moved is part for moved, part in zip(to_device(batch, CPU), batch, strict=True))
