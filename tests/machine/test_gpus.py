"""The GPUs a launcher may use are those this process may use; a job is told of its share only."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from research.errors import UserError
from research.machine import gpus
from research.machine.gpus import driver_version, egl_order, gpu_models, gpu_uuids
from research.machine.slots import Slot
from tests.machine.machines import MIG, MIGS, TWO_GPUS, UUIDS, Machine


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
    with pytest.raises(UserError, match=r"hydra.launcher.gpus=\[3\], but there is no GPU here"):
        here.gpus([3])
    here.write("dev/nvidiactl", "")
    assert here.gpus([3, "GPU-cccc", "MIG-dddd"]) == ["3", "GPU-cccc", "MIG-dddd"]
    assert here.gpus("auto", "3,5") == ["3", "5"]


def test_job_has_its_threads_and_its_gpu(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    here.nvidia_smi(TWO_GPUS)
    monkeypatch.setattr(gpus, "egl_order", lambda: {0: 2, 1: 0})
    threads = dict.fromkeys(gpus.THREAD_VARIABLES, "3")
    for name in "1", UUIDS[1]:
        assert here.environment(Slot(0, (), 3, name)) == threads | {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": name,
            "MUJOCO_EGL_DEVICE_ID": "0",
        }


def test_job_with_several_gpus_sees_them_and_renders_on_the_first(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.nvidia_smi(TWO_GPUS)
    monkeypatch.setattr(gpus, "egl_order", lambda: {0: 2, 1: 3})
    for names in "1,0", ",".join(reversed(UUIDS)):
        variables = here.environment(Slot(0, (), 1, names))
        assert variables["CUDA_VISIBLE_DEVICES"] == names
        assert variables["MUJOCO_EGL_DEVICE_ID"] == "3"


def test_job_without_a_gpu_is_told_nothing_and_one_that_must_not_see_any_that(
    here: Machine,
) -> None:
    here.nvidia_smi(TWO_GPUS)
    assert set(here.environment(Slot(0, (0,), 1, None))) == set(gpus.THREAD_VARIABLES)
    assert here.environment(Slot(0, (0,), 1, ""))["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("listing", "gpu"), [(TWO_GPUS, "0"), (MIG, "1"), (MIG, MIGS[0]), ("", "1"), (TWO_GPUS, "")]
)
def test_renderer_chooses_where_the_egl_device_is_not_known(
    here: Machine, monkeypatch: pytest.MonkeyPatch, listing: str, gpu: str
) -> None:
    here.nvidia_smi(listing)
    monkeypatch.setattr(gpus, "egl_order", lambda: {1: 0})
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


def test_gpus_are_named_by_the_drivers_files(here: Machine) -> None:
    assert (gpu_models(here.root), driver_version(here.root)) == ([], None)
    here.write(
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build\n"
        "GCC version:  gcc version 12.2.0\n",
    )
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        information = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 30\n"
        here.write(f"proc/driver/nvidia/gpus/{bus}/information", information)
    assert gpu_models(here.root) == ["NVIDIA H200"] * 2
    assert driver_version(here.root) == "550.54.15"


def test_a_driver_that_hides_its_files_names_no_gpu(here: Machine) -> None:
    (here.root / "proc/driver/nvidia/gpus/0000:01:00.0/information").mkdir(parents=True)
    assert gpu_models(here.root) == []
