"""The device: what is there, or one line."""

import platform
import subprocess
import sys

import pytest
import torch

from research.errors import UserError
from research.machine.device import choose_device, data_device


@pytest.mark.parametrize(("available", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, available: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device("auto") == torch.device(expected)


def test_a_gpu_that_is_there_does_not_override_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cpu:x"])
def test_an_unknown_name_is_told_what_there_is(name: str) -> None:
    with pytest.raises(UserError, match=f"^device={name} is no device; allowed: auto, cpu, cuda"):
        choose_device(name)


def test_a_device_that_is_not_there_is_named_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^device=cuda:99 cannot be used: .+; try device=auto$"):
        choose_device("cuda:99")


@pytest.mark.parametrize(
    ("name", "kind"), [("cpu", "cpu"), ("mps", "cpu"), ("cuda:0", "cuda"), ("auto", "cuda")]
)
def test_data_is_kept_on_a_gpu_that_can_or_on_the_host(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert data_device(name).type == kind


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gpu", "is no device"), ("meta", "cannot hold data"), ("cuda:99", "GPUs are visible")],
)
def test_data_is_not_kept_where_nothing_is(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^device={name}.*{reason}"):
        data_device(name)


COUNT_PAGE_FAULTS = """
import resource, sys
import torch
from research.machine.device import choose_device
if sys.argv[1:]:
    choose_device("cpu")
for repetition in range(40):
    if repetition == 30:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_on_the_cpu_freed_memory_is_used_again() -> None:
    faults = [
        int(subprocess.check_output([sys.executable, "-c", COUNT_PAGE_FAULTS, *arguments]))
        for arguments in ([], ["cpu"])
    ]
    assert faults[1] < faults[0] / 10
