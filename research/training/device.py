"""The device that a run computes on."""

import torch

from research.errors import UserError


def choose_device(name: str) -> torch.device:
    """``auto`` is the first GPU, else the CPU; any other name is taken as torch writes it.

    Raises:
        UserError: for a name that torch does not know, or a device that is not there.

    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"device={name} is no device; allowed: auto, cpu, cuda, cuda:1, ..., mps"
        ) from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={name} cannot be used: {reason}; try device=auto") from error
    return device
