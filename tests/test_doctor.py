"""The doctor: a line for each part of the machine, plain words for what is wrong, no traceback."""

import os
import re
import shutil
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from research import doctor
from research.errors import UserError

NAMES = ["cpus", "memory", "gpus", "torch", "rendering", "disk", "slurm"]


def run(folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "research.doctor"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
    )


def lines(program: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {line[:10].strip(): line[11:] for line in program.stdout.splitlines()}


@pytest.mark.parametrize(
    ("environment", "rendering"),
    [
        ({}, r"frames per second at 84x84|PROBLEM: cannot render"),
        ({"PYOPENGL_PLATFORM": "glx", "MUJOCO_GL": ""}, "PROBLEM: cannot render.*apt-get install"),
    ],
)
def test_every_part_has_a_line_and_rendering_is_not_needed_to_train(
    tmp_path: Path, environment: dict[str, str], rendering: str
) -> None:
    program = run(tmp_path, {"CUDA_VISIBLE_DEVICES": "", **environment})
    assert (program.returncode, program.stderr) == (0, "")
    assert list(lines(program)) == NAMES
    assert "cannot tell" not in program.stdout
    assert re.search(rendering, lines(program)["rendering"])


def set_checks(monkeypatch: pytest.MonkeyPatch, check: Callable[[], str]) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"first": check, "second": lambda: "fine"})


def fail(error: Exception) -> Callable[[], str]:
    def check() -> str:
        raise error

    return check


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (doctor.Broken("no\ndisk"), "BROKEN: no disk", 1),
        (UserError("no\nscreen"), "PROBLEM: no screen", 0),
        (ZeroDivisionError("odd\nmachine"), "cannot tell: ZeroDivisionError: odd machine", 0),
    ],
)
def test_a_failing_check_is_one_line_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    line: str,
    status: int,
) -> None:
    set_checks(monkeypatch, fail(error))
    assert doctor.main() == status
    assert capsys.readouterr().out == f"first      {line}\nsecond     fine\n"


def test_a_torch_for_cpus_on_a_machine_with_a_gpu_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "usable_gpus", lambda choice: ["0"])
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(doctor.Broken, match="this torch is for CPUs only"):
        doctor.check_torch()


def test_a_driver_too_old_for_torch_is_told_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_available() -> bool:
        warnings.warn("The NVIDIA driver is too old (found 11040). (Triggered internally at x)")
        return False

    monkeypatch.setattr(doctor, "usable_gpus", lambda choice: ["0"])
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    with pytest.raises(
        doctor.Broken, match=r"too old \(found 11040\)\. Update the driver"
    ) as error:
        doctor.check_torch()
    assert "Triggered" not in str(error.value)


def test_a_gpu_that_torch_has_no_code_for_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def ones(*shape: int, device: str) -> torch.Tensor:
        raise RuntimeError("no kernel image is available\nCompile with ...")

    monkeypatch.setattr(doctor, "usable_gpus", lambda choice: ["0"])
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", ones)
    with pytest.raises(doctor.Broken, match=r"does not compute \(no kernel image is available\)"):
        doctor.check_torch()


def test_a_torch_that_cannot_be_imported_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(doctor.Broken, match="torch cannot be imported"):
        doctor.check_torch()


def test_a_full_disk_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=5 * 10**8))
    with pytest.raises(doctor.Broken, match=r"only 0\.5 GB free in /"):
        doctor.check_disk()


def put_program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "none"),
        ("echo slurm-wlm 22.05.8", "slurm-wlm 22.05.8"),
    ],
)
def test_slurm_is_its_version_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, line: str
) -> None:
    if text:
        put_program(tmp_path, "sinfo", text)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_slurm() == line


def test_slurm_without_a_cluster_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_program(tmp_path, "sinfo", "echo no configuration >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no cluster \(no configuration\)"):
        doctor.check_slurm()


def test_gpus_are_named_with_their_parts_and_what_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = (
        "GPU 0: NVIDIA A100 (UUID: GPU-11)\\n"
        "  MIG 3g.20gb Device 0: (UUID: MIG-22)\\nGPU 1: NVIDIA A100 (UUID: GPU-33)"
    )
    put_program(tmp_path, "nvidia-smi", f"printf '{listing}'")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    line = "0: GPU-11 (1 MIG), 1: GPU-33, CUDA_VISIBLE_DEVICES leaves 1"
    assert doctor.check_gpus() == line


def test_the_limit_of_a_control_group_is_told(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/job"
    group.mkdir(parents=True)
    for folder, limit in ((group, "max"), (group.parent, str(3 * 10**9))):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("0")
        (folder / "memory.stat").write_text("inactive_file 0")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 8000000 kB\n")
    line = doctor.check_memory(tmp_path)
    assert line.startswith("3.0 GB available of ")
    assert line.endswith("control group grants 3.0 GB")
