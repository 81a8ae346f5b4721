"""The device: what is there, or one line."""

import pytest
import torch

from research.errors import UserError
from research.training.device import choose_device


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
