"""Rows in files: on a real disk, with room, or refused in a line."""

import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from research.machine import disk
from research.machine.disk import file_system, map_file, require_disk

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:26 / /tmp rw shared:5 - tmpfs tmpfs rw
31 22 0:27 / /tmp/my\\040data rw shared:5 master:2 - xfs /dev/sdb1 rw
"""


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_mapped_tensor_keeps_what_is_written(dtype: torch.dtype) -> None:
    rows = map_file((1000, 7), dtype)
    values = torch.arange(7000).view(1000, 7).to(dtype)
    rows.copy_(values)
    assert rows.equal(values)
    assert rows.dtype == dtype


def test_a_mapped_tensor_may_have_no_elements() -> None:
    assert map_file((5, 0), torch.float32).shape == (5, 0)


@pytest.mark.parametrize(
    ("folder", "kind"), [("/home/me", "ext4"), ("/tmp/a", "tmpfs"), ("/tmp/my data/a", "xfs")]
)
def test_the_file_system_is_that_of_the_innermost_mount(
    tmp_path: Path, folder: str, kind: str
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(MOUNTS)
    assert file_system(Path(folder), tmp_path) == kind


def test_where_mounts_are_not_told_nothing_is_refused(tmp_path: Path) -> None:
    assert file_system(Path("/home"), tmp_path) is None


def test_a_folder_in_memory_is_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "file_system", lambda folder: "tmpfs")
    message = r"^a buffer cannot be on disk in .*, which is in memory \(tmpfs\); set TMPDIR to"
    with pytest.raises(ValueError, match=message):
        require_disk(1, "a buffer")


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(disk, "file_system", lambda folder: "ext4")
    usage = namedtuple("usage", ["free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(999))
    require_disk(999, "a buffer")
    message = rf"^a buffer needs 1 kB of disk, but 999 B are free in {tmp_path}; set TMPDIR"
    with pytest.raises(ValueError, match=message):
        require_disk(1000, "a buffer")
