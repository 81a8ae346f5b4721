"""The device that a run computes on."""

import ctypes
from contextlib import suppress

import torch

from research.errors import UserError
from research.load_order import load_triton

TRIM_THRESHOLD, GROWTH, MAX_MAPPED_BLOCKS = -1, -2, -4
"""Parameters of mallopt, https://man7.org/linux/man-pages/man3/mallopt.3.html"""


def choose_device(name: str) -> torch.device:
    """``auto`` is the first GPU, else the CPU; any other name is taken as torch writes it.

    For the CPU, the process then keeps the memory that tensors give back. Afterwards environments
    may render: see ``load_triton``.

    Raises:
        UserError: for a name that torch does not know, or a device that is not there.

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


def data_device(name: str) -> torch.device:
    """Where data is kept for a run on the device of this name: the host serves Apple's GPUs.

    Raises:
        ValueError: for a name that torch does not know, a GPU that is not there, or a device of
            another kind.

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
    """Let the C library reuse memory that is freed, where it is glibc; else do nothing.

    By itself it gives every large block back to the system and gets it again page by page, each
    filled with zeros: for the activations of convolutions that takes more than a third of an
    update's time.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MAX_MAPPED_BLOCKS, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(GROWTH, 2**26)
