"""The device that a run computes on."""

import ctypes
from contextlib import suppress

import torch

from research.errors import UserError
from research.load_order import load_triton

TRIM_THRESHOLD, GROWTH, MAX_MAPPED_BLOCKS = -1, -2, -4
"""Parameters of mallopt, https://man7.org/linux/man-pages/man3/mallopt.3.html"""


def choose_device(name: str) -> torch.device:
    """The device of this name, which must work; ``auto`` is the first GPU, else the CPU.

    On the CPU, this process from now on keeps the memory that tensors free. Call this before an
    environment renders: see ``load_triton``.

    Raises:
        UserError: torch does not know the name, or the device cannot be used.

    """
    load_triton()
    try:
        device = parse_device(name)
    except ValueError as error:
        raise UserError(str(error)) from error
    if name == "auto" and device.type == "cuda":
        return device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={name} cannot be used: {reason}; try device=auto") from error
    if device.type == "cpu":
        keep_freed_memory()
    return device


def make_current(device: torch.device) -> None:
    """Let this process use this GPU, if it is one, wherever it is not said which."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def data_device(name: str) -> torch.device:
    """The device that holds the data of a run on the device of this name; for Apple's GPUs the CPU.

    Raises:
        ValueError: torch does not know the name, there is no such GPU, or it is a device of a kind
            that cannot hold data.

    """
    device = parse_device(name)
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device={name} cannot hold data; allowed: auto, cpu, cuda, cuda:1, ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"device={name}, but {count} GPUs are visible; try device=cpu")
    return torch.device("cpu") if device.type == "mps" else device


def parse_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is the first GPU, else the CPU.

    Raises:
        ValueError: torch does not know the name.

    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        allowed = "auto, cpu, cuda, cuda:1, ..., mps"
        raise ValueError(f"device={name} is no device; allowed: {allowed}") from error


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory; do nothing with another C library.

    By default, it returns every large block to the system and gets it back page by page, each
    filled with zeros: for the activations of convolutions that takes more than a third of an
    update's time.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MAX_MAPPED_BLOCKS, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(GROWTH, 2**26)
