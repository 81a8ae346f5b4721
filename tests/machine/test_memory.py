"""The memory that a process may use."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from research.machine import memory
from research.machine.memory import (
    available_memory,
    format_bytes,
    peak_bytes,
    peak_memory,
    require_memory,
)

GB = 10**9
ROOT = Path(__file__).parents[2]
V2_MOUNT = "30 23 0:26 / /cg rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 {top} /cg/memory rw,relatime - cgroup cgroup rw,memory\n"


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)


def write_machine(root: Path, cgroup: str = "", mountinfo: str = "") -> None:
    """A machine with 8 GB left, and this process in ``cgroup``."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {8 * GB // 1024} kB\n")
    (root / "proc/self/statm").write_text("1000 900 800 1 0 500 0\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(f"22 1 8:1 / / rw - ext4 /dev/sda rw\n{mountinfo}")


def write_v2(folder: Path, limit: str, use: int, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{use}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")


def write_v1(folder: Path, limit: int, use: int, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{use}\n")
    (folder / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {inactive}\n")


def test_without_limits_it_is_what_the_machine_has_left(tmp_path: Path) -> None:
    write_machine(tmp_path)
    assert available_memory(tmp_path) == 8 * GB // 1024 * 1024


def test_a_control_group_leaves_its_limit_less_what_is_used(tmp_path: Path) -> None:
    write_machine(tmp_path, "0::/job/step\n", V2_MOUNT)
    write_v2(tmp_path / "cg/job/step", str(3 * GB), GB)
    assert available_memory(tmp_path) == 2 * GB


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    write_machine(tmp_path, "0::/job/step\n", V2_MOUNT)
    write_v2(tmp_path / "cg/job/step", "max", GB)
    write_v2(tmp_path / "cg/job", str(5 * GB), 4 * GB)
    assert available_memory(tmp_path) == GB


def test_file_cache_that_the_kernel_gives_back_is_not_used_memory(tmp_path: Path) -> None:
    write_machine(tmp_path, "0::/job\n", V2_MOUNT)
    write_v2(tmp_path / "cg/job", str(3 * GB), 3 * GB, inactive=GB)
    assert available_memory(tmp_path) == GB


def test_a_group_outside_the_own_path_does_not_count(tmp_path: Path) -> None:
    write_machine(tmp_path, "0::/job\n", V2_MOUNT)
    write_v2(tmp_path / "cg/other", str(GB), 0)
    write_v2(tmp_path / "cg/job", str(6 * GB), GB)
    assert available_memory(tmp_path) == 5 * GB


@pytest.mark.parametrize(("path", "top"), [("/job", "/"), ("/docker/1/job", "/docker/1")])
def test_version_1_limits_count_also_inside_a_container(
    tmp_path: Path, path: str, top: str
) -> None:
    write_machine(tmp_path, f"4:cpu,memory:{path}\n0::/\n", V1_MOUNT.format(top=top))
    write_v1(tmp_path / "cg/memory/job", 4 * GB, 2 * GB, inactive=GB)
    assert available_memory(tmp_path) == 3 * GB


@pytest.mark.parametrize(
    ("path", "top"), [("/not/visible", "/docker/1"), ("/../sibling", "/"), ("/deleted", "/")]
)
def test_a_group_that_cannot_be_seen_counts_as_the_top_of_the_mount(
    tmp_path: Path, path: str, top: str
) -> None:
    write_machine(tmp_path, f"4:memory:{path}\n", V1_MOUNT.format(top=top))
    write_v1(tmp_path / "cg/memory", 4 * GB, GB)
    assert available_memory(tmp_path) == 3 * GB


@pytest.mark.parametrize(("name", "pages"), [("RLIMIT_AS", 1000), ("RLIMIT_DATA", 500)])
def test_the_limits_of_the_process_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, pages: int
) -> None:
    write_machine(tmp_path)
    own = getattr(resource, name)
    unlimited = (resource.RLIM_INFINITY,) * 2
    monkeypatch.setattr(
        resource, "getrlimit", lambda asked: (GB, 2 * GB) if asked == own else unlimited
    )
    assert available_memory(tmp_path) == GB - pages * resource.getpagesize()


def test_a_group_beyond_its_limit_leaves_nothing(tmp_path: Path) -> None:
    write_machine(tmp_path, "0::/job\n", V2_MOUNT)
    write_v2(tmp_path / "cg/job", str(GB), 2 * GB)
    assert available_memory(tmp_path) == 0


def test_a_machine_without_proc_counts_all_it_has(tmp_path: Path) -> None:
    assert available_memory(tmp_path) > 10**8


def test_this_machine_has_some_memory_left() -> None:
    assert 10**6 < available_memory() < 10**15


def test_what_does_not_fit_is_refused_with_forecast_limit_and_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * GB)
    require_memory(2 * GB, "a buffer", torch.device("cpu"), "lower it")
    with pytest.raises(ValueError, match="a buffer") as caught:
        require_memory(2 * GB + 1, "a buffer", torch.device("cpu"), "lower it")
    assert str(caught.value) == (
        "a buffer needs 2 GB of memory, but 2 GB are available to this process; lower it"
    )


def test_on_a_gpu_its_free_memory_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (GB, 9 * GB))
    with pytest.raises(ValueError, match=r"but 1 GB are free on cuda:1; lower it"):
        require_memory(2 * GB, "a buffer", torch.device("cuda:1"), "lower it")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (93_123_456_789, "93.1 GB"), (10**18, "1e+03 PB")],
)
def test_sizes_are_readable(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child's own peak")
def test_what_the_parent_took_is_not_counted() -> None:
    held = torch.ones(2**27)  # 537 MB
    code = "from research.machine.memory import peak_bytes; print(peak_bytes())"
    child = [sys.executable, "-c", code]
    taken = int(subprocess.run(child, cwd=ROOT, capture_output=True, check=True).stdout)
    assert 10**8 < taken < held.nbytes


def test_without_proc_the_system_tells_the_peak(tmp_path: Path) -> None:
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak_bytes(tmp_path) == pytest.approx(maximum, rel=0.1)


def test_the_most_memory_taken_is_kept() -> None:
    before = peak_memory(torch.device("cpu"))["memory_gb"]
    rusage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    assert 0.1 < before <= 1.02 * rusage
    needed = int(before * 1e9) + 2**26
    torch.ones(needed // 4)
    assert peak_memory(torch.device("cpu"))["memory_gb"] > before + 0.03
