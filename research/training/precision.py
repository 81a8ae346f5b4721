"""Arithmetic in 16 bits: Micikevicius et al., 2018, https://arxiv.org/abs/1710.03740."""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from research.errors import UserError

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}

SMALLEST = 2.0**-14
"""The least scale, fp16's smallest normal number: gradients that overflow with it always will."""

ADVICE = (
    "scale targets or observations down, lower the learning rate, or set trainer.precision=bf16"
)

log = logging.getLogger(__name__)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """A context in which products and convolutions are computed in ``precision``."""
    if precision == "fp32":
        return nullcontext()
    # Without the cache: it hands weights that were cast without gradients to losses that need them.
    return torch.autocast(device.type, DTYPES[precision], cache_enabled=False)


def make_step(device: torch.device) -> Tensor:
    """A place for a number of steps, in the device's most exact type."""
    return torch.zeros(
        (), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device
    )


class LossScaler:
    """Scales a loss so that fp16 gradients keep their digits, and skips steps that overflow."""

    def __init__(self, device: torch.device) -> None:
        self.scaler = torch.amp.GradScaler(device.type)  # type: ignore[reportPrivateImportUsage]
        self.scale(torch.zeros((), device=device))  # creates the scale: a rank may get no example
        self.last = self.scaler.get_scale()

    def scale(self, loss: Tensor) -> Tensor:
        """``loss`` times the scale, to take the gradients of."""
        return self.scaler.scale(loss)

    def step(self, optim: Optimizer) -> bool:
        """Make one step with unscaled gradients, unless any is infinite, and adapt the scale.

        Returns:
            whether the step was made; this waits for a GPU.

        Raises:
            UserError: the gradients are infinite even with the smallest scale.

        """
        self.scaler.unscale_(optim)  # before whatever the optimizer's hooks do to the gradients
        self.scaler.step(optim)
        self.scaler.update()
        before, self.last = self.last, self.scaler.get_scale()
        if self.last < SMALLEST:
            raise UserError(
                f"gradients overflow fp16 even where the loss is scaled by {before:.2g}; {ADVICE}"
            )
        if self.last < 1 <= before:
            log.warning(
                "gradients overflow fp16 unless the loss is scaled down, so that updates are "
                "skipped; %s",
                ADVICE,
            )
        return self.last >= before

    def state_dict(self) -> dict[str, Any]:
        """The scale, and the number of steps since it last changed."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a ``state_dict``."""
        self.scaler.load_state_dict(state)
        self.last = self.scaler.get_scale()
