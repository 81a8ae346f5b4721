"""Batches are copied as they are."""

import torch

from research.batches import PackedBatch, to_device

CPU = torch.device("cpu")


def test_nothing_is_copied_that_is_there() -> None:
    batch = (torch.rand(3, 2), torch.rand(3))
    assert all(moved is part for moved, part in zip(to_device(batch, CPU), batch, strict=True))


def test_a_packed_batch_is_moved_before_it_is_unpacked() -> None:
    window = torch.arange(12.0).view(3, 4)
    packed = PackedBatch([window], lambda memory: (memory[0][:, :3], memory[0][:, 1:]))
    first, last = to_device(packed, torch.device("meta"))
    assert first.device.type == last.device.type == "meta"
    assert first.untyped_storage()._cdata == last.untyped_storage()._cdata
