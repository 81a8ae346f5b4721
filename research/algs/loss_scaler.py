"""Scaling of losses for fp16: Micikevicius et al., 2018, https://arxiv.org/abs/1710.03740."""

import logging

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from research.errors import UserError

log = logging.getLogger(__name__)

SMALLEST = 2.0**-14
"""The least scale, fp16's smallest normal number: gradients that overflow with it always will."""

ADVICE = "scale targets or observations down, lower the learning rate, or set alg.precision=bf16"


class LossScaler(nn.Module):
    """Scales a loss so that fp16 gradients keep their digits, and skips steps that overflow.

    A module, so that the scale is part of ``state_dict``: float64 (2,), the scale and the number of
    steps since it last changed.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
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

    def get_extra_state(self) -> Tensor:
        state = self.scaler.state_dict()
        return torch.tensor([state["scale"], state["_growth_tracker"]], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        scale, growth_tracker = state.tolist()
        new = {"scale": scale, "_growth_tracker": int(growth_tracker)}
        self.scaler.load_state_dict({**self.scaler.state_dict(), **new})
        self.last = scale
