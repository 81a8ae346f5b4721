"""What a launcher may use is what this process may use, and a job is told of its share only."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from research.errors import UserError
from research.launchers import machine
from research.launchers.machine import (
    cpu_quota,
    egl_order,
    gpu_uuids,
    slot_environment,
    usable_cpus,
    usable_gpus,
)
from research.launchers.slots import Slot

TWO_GPUS = """\
GPU 0: NVIDIA RTX A5000 (UUID: GPU-aaaa1111-0000-0000-0000-000000000000)
GPU 1: NVIDIA RTX A5000 (UUID: GPU-aaaa2222-0000-0000-0000-000000000000)
"""
MIG = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa1111-0000-0000-0000-000000000000)
  MIG 3g.20gb     Device  0: (UUID: MIG-bbbb1111-0000-0000-0000-000000000000)
  MIG 3g.20gb     Device  1: (UUID: MIG-bbbb2222-0000-0000-0000-000000000000)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa2222-0000-0000-0000-000000000000)
"""
UUIDS = [f"GPU-aaaa{n}-0000-0000-0000-000000000000" for n in (1111, 2222)]
MIGS = [f"MIG-bbbb{n}-0000-0000-0000-000000000000" for n in (1111, 2222)]


class Machine:
    """A pretended machine: files under a root, and a ``nvidia-smi`` of its own on PATH."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir()
        self.environ = {"PATH": str(root / "bin")}

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def nvidia_smi(self, text: str, code: int = 0) -> None:
        self.write("bin/nvidia-smi", f"#!/bin/sh\n[ $* = -L ] && echo '{text}'\nexit {code}\n")
        (self.root / "bin/nvidia-smi").chmod(0o755)

    def gpus(self, choice: Any, visible: str | None = None) -> list[str] | None:
        setting = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        return usable_gpus(choice, environ=self.environ | setting, root=self.root)

    def environment(self, slot: Slot, **environ: str) -> dict[str, str]:
        return slot_environment(slot, self.environ | environ, root=self.root)


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may run on CPUs 0 to 7."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.usefixtures("eight_cpus")
def test_threads_of_a_core_and_cores_of_a_socket_are_neighbours(here: Machine) -> None:
    for cpu in range(8):  # two sockets, in turns; CPUs 4 to 7 are the second threads of 0 to 3
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        here.write(f"{folder}/physical_package_id", f"{cpu % 2}\n")
        here.write(f"{folder}/core_id", f"{cpu % 4 // 2}\n")
    assert usable_cpus("auto", root=here.root) == [0, 4, 2, 6, 1, 5, 3, 7]
    assert usable_cpus(3, root=here.root) == [0, 4, 2]
    assert usable_cpus([7, 0], root=here.root) == [7, 0]


@pytest.mark.usefixtures("eight_cpus")
def test_cpus_without_the_kernels_files_keep_their_order(here: Machine) -> None:
    assert usable_cpus("auto", root=here.root) == list(range(8))


def test_cpus_of_this_machine_are_those_of_its_affinity() -> None:
    assert set(usable_cpus("auto")) <= os.sched_getaffinity(0)
    assert usable_cpus([min(os.sched_getaffinity(0))]) == [min(os.sched_getaffinity(0))]


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("auot", "got 'auot'; did you mean 'auto'"),
        (0, "=0: allowed is a number from 1 to 8"),
        (9, "=9: allowed is a number from 1 to 8"),
        ([0, 8], r"=\[0, 8\]: each must be named once, of those this process may use: 0, 1, 2"),
        ([1, 1], "must be named once"),
        ([], "must be named once"),
    ],
)
def test_cpus_that_cannot_be_had_are_refused(here: Machine, choice: Any, said: str) -> None:
    with pytest.raises(UserError, match=rf"^hydra\.launcher\.cpus.*{said}"):
        usable_cpus(choice, root=here.root)


V1 = "31 23 0:28 {source} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "41 31 0:38 {source} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("mount", "source", "group", "files", "quota"),
    [
        (V2, "/", "0::/a/b", {"a/b/cpu.max": "max 100000"}, None),
        (V2, "/", "0::/a/b", {"a/b/cpu.max": "350000 100000"}, 3.5),
        (V2, "/", "0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2),
        (V2, "/", "0::/a/b", {"cpu.max": "300000 100000", "a/cpu.max": "400000 100000"}, 3),
        (V2, "/", "0::/", {"cpu.max": "50000 100000"}, 0.5),
        (V2, "/", "0::/../c", {"cpu.max": "200000 100000", "c/cpu.max": "100000 100000"}, 2),
        (V2, "/pod/c1", "0::/pod/c1", {"cpu.max": "200000 100000"}, 2),
        (V1, "/", "3:cpuacct,cpu:/a", {"a/cpu.cfs_quota_us": "-1"}, None),
        (V1, "/", "3:cpuacct,cpu:/a", {"a/cpu.cfs_quota_us": "150000"}, 1.5),
        (V1, "/docker/c1", "3:cpu,cpuacct:/docker/c1", {"cpu.cfs_quota_us": "400000"}, 4),
        (V1, "/", "3:cpuset:/a", {"a/cpu.cfs_quota_us": "150000"}, None),
    ],
)
def test_quota_is_the_tightest_of_the_groups_around_this_process(
    here: Machine, mount: str, source: str, group: str, files: dict[str, str], quota: float | None
) -> None:
    here.write(
        "proc/self/mountinfo", mount.format(source=source) + "22 27 0:21 / /proc rw - proc p rw"
    )
    here.write("proc/self/cgroup", group + "\n")
    for name, text in files.items():
        folder = "sys/fs/cgroup" + ("/cpu,cpuacct" if mount == V1 else "")
        here.write(f"{folder}/{name}", text + "\n")
        here.write(f"{folder}/{Path(name).parent}/cpu.cfs_period_us", "100000\n")
    assert cpu_quota(root=here.root) == quota


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(("quota", "cpus"), [(250000, 2), (50000, 1), (9900000, 8)])
def test_quota_caps_the_cpus_but_not_a_list(here: Machine, quota: int, cpus: int) -> None:
    here.write("proc/self/mountinfo", V2.format(source="/"))
    here.write("proc/self/cgroup", "0::/\n")
    here.write("sys/fs/cgroup/cpu.max", f"{quota} 100000\n")
    assert usable_cpus("auto", root=here.root) == list(range(cpus))
    assert usable_cpus([6, 7], root=here.root) == [6, 7]


def test_machine_without_gpus_has_none(here: Machine) -> None:
    assert here.gpus("auto") is None
    assert here.gpus([]) == []


def test_driver_that_finds_no_gpu_has_none(here: Machine) -> None:
    here.nvidia_smi("No devices found.")
    assert here.gpus("auto") is None


def test_gpus_are_named_by_index_and_divided_ones_by_their_parts(here: Machine) -> None:
    here.nvidia_smi(MIG)
    assert here.gpus("auto") == [*MIGS, "1"]


def test_failing_nvidia_smi_leaves_the_drivers_files(here: Machine) -> None:
    here.nvidia_smi("Failed to initialize NVML", code=9)
    for bus, uuid in zip(["0000:01:00.0", "0000:02:00.0"], [UUIDS[0], "GPU-????-??"], strict=True):
        here.write(f"proc/driver/nvidia/gpus/{bus}/information", f"GPU UUID: \t {uuid}\n")
    assert here.gpus("auto") == ["0", "1"]
    assert gpu_uuids(["0", "1"], environ=here.environ, root=here.root) == [UUIDS[0], "1"]


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("1", ["1"]),
        ("1, 0", ["1", "0"]),
        ("GPU-aaaa2", [UUIDS[1]]),
        (MIGS[1], [MIGS[1]]),
        ("MIG-GPU-aaaa1111/1/0", ["MIG-GPU-aaaa1111/1/0"]),
        ("", []),
        ("-1", []),
        ("1,-1,0", ["1"]),
        ("NoDevFiles", []),
    ],
)
def test_visible_gpus_that_the_user_has_set_are_read_as_cuda_does(
    here: Machine, visible: str, gpus: list[str]
) -> None:
    here.nvidia_smi(MIG)
    assert here.gpus("auto", visible) == gpus


@pytest.mark.parametrize("visible", ["2", "0,2", "GPU-aaaa", "GPU-cccc"])
def test_visible_gpus_that_are_not_there_are_refused(here: Machine, visible: str) -> None:
    here.nvidia_smi(TWO_GPUS)
    with pytest.raises(UserError, match=r"^CUDA_VISIBLE_DEVICES: '.*' is not one of the GPUs here"):
        here.gpus("auto", visible)


@pytest.mark.parametrize(
    ("choice", "visible", "gpus"),
    [
        ([1], None, ["1"]),
        (["1", 0], None, ["1", "0"]),
        (["GPU-aaaa1"], None, [UUIDS[0]]),
        ([0], "1", ["1"]),
        ([1, 0], f"{UUIDS[1]},{UUIDS[0]}", UUIDS),
        (["GPU-aaaa2"], "1,0", ["1"]),
        (["GPU-aaaa2"], UUIDS[1], [UUIDS[1]]),
    ],
)
def test_listed_gpus_lie_within_the_visible_ones(
    here: Machine, choice: Sequence[str | int], visible: str | None, gpus: list[str]
) -> None:
    here.nvidia_smi(TWO_GPUS)
    assert here.gpus(choice, visible) == gpus


@pytest.mark.parametrize(
    ("choice", "visible", "said"),
    [
        ("auot", None, "must be auto or a list, got 'auot'; did you mean 'auto'"),
        (2, None, "must be auto or a list, got '2'"),
        ([2], None, "'2' is not one of the GPUs here, 0, 1"),
        ([-1], None, "named by an index, .* got '-1'"),
        (["cuda:0"], None, "named by an index, .* got 'cuda:0'"),
        (["GPU-aaaa"], None, "'GPU-aaaa' is not one of"),
        ([0, 0], None, "names 0 twice; .*jobs_per_gpu"),
        ([1], "1", "GPU 1 is not in CUDA_VISIBLE_DEVICES=1"),
        ([0], "", "GPU 0 is not in CUDA_VISIBLE_DEVICES="),
        (["GPU-aaaa1"], "1", "GPU GPU-aaaa1 is not in CUDA_VISIBLE_DEVICES=1"),
    ],
)
def test_gpus_that_cannot_be_had_are_refused(
    here: Machine, choice: Any, visible: str | None, said: str
) -> None:
    here.nvidia_smi(TWO_GPUS)
    with pytest.raises(UserError, match=rf"^hydra\.launcher\.gpus.*{said}"):
        here.gpus(choice, visible)


def test_gpus_are_taken_at_their_word_where_none_can_be_known(here: Machine) -> None:
    assert here.gpus([3, "GPU-cccc", "MIG-dddd"]) == ["3", "GPU-cccc", "MIG-dddd"]
    assert here.gpus("auto", "3,5") == ["3", "5"]


def test_job_has_its_threads_and_its_gpu(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    here.nvidia_smi(TWO_GPUS)
    monkeypatch.setattr(machine, "egl_order", lambda: {0: 2, 1: 0})
    threads = dict.fromkeys(machine.THREAD_VARIABLES, "3")
    for name in "1", UUIDS[1]:
        assert here.environment(Slot(0, (), 3, name)) == threads | {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": name,
            "MUJOCO_EGL_DEVICE_ID": "0",
        }


def test_job_without_a_gpu_is_told_nothing_and_one_that_must_not_see_any_that(
    here: Machine,
) -> None:
    here.nvidia_smi(TWO_GPUS)
    assert set(here.environment(Slot(0, (0,), 1, None))) == set(machine.THREAD_VARIABLES)
    assert here.environment(Slot(0, (0,), 1, ""))["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("listing", "gpu"), [(TWO_GPUS, "0"), (MIG, "1"), (MIG, MIGS[0]), ("", "1"), (TWO_GPUS, "")]
)
def test_renderer_chooses_where_the_egl_device_is_not_known(
    here: Machine, monkeypatch: pytest.MonkeyPatch, listing: str, gpu: str
) -> None:
    here.nvidia_smi(listing)
    monkeypatch.setattr(machine, "egl_order", lambda: {1: 0})
    assert "MUJOCO_EGL_DEVICE_ID" not in here.environment(Slot(0, (), 1, gpu))


@pytest.mark.parametrize(
    ("own", "omp", "mkl"),
    [
        ({"OMP_NUM_THREADS": "2"}, "2", "2"),
        ({"OMP_NUM_THREADS": "16"}, "4", "4"),
        ({"OMP_NUM_THREADS": "2,1"}, "2", "2"),
        ({"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "3"}, "2", "3"),
        ({"OMP_NUM_THREADS": "many", "MKL_NUM_THREADS": "0"}, "4", "4"),
    ],
)
def test_users_own_cap_on_threads_stays_if_it_is_lower(
    here: Machine, own: dict[str, str], omp: str, mkl: str
) -> None:
    variables = here.environment(Slot(0, (), 4, None), **own)
    assert (variables["OMP_NUM_THREADS"], variables["MKL_NUM_THREADS"]) == (omp, mkl)


# Three EGL devices: a CPU, then GPU 1 and GPU 0 as long as no GPU is hidden.
FAKE_EGL = """
#include <stdlib.h>
#include <string.h>
unsigned list(int max, void **devices, int *count) {
  for (*count = 0; *count < 3; ++*count) devices[*count] = (void *)(long)(*count + 10);
  return max >= 3;
}
unsigned query(void *device, int attribute, long *value) {
  if (attribute != 0x323A || device == (void *)10 || getenv("CUDA_VISIBLE_DEVICES")) return 0;
  *value = device == (void *)11;
  return 1;
}
void *eglGetProcAddress(const char *name) {
  return strcmp(name, "eglQueryDevicesEXT") ? (void *)query : (void *)list;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for a pretended libEGL")
def test_egl_says_which_of_its_devices_is_which_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "egl.c").write_text(FAKE_EGL)
    library = tmp_path / "libEGL.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "egl.c"], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert egl_order.__wrapped__() == {1: 1, 0: 2}


def test_no_egl_knows_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libEGL.so.1").write_text("no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert egl_order.__wrapped__() == {}
