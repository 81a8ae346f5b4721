"""Models of other libraries, such as torchvision's and timm's."""

from collections.abc import Callable

import gymnasium
import torch
from torch import Tensor, nn

from research.networks.predictor import Predictor, float_shape


class External(Predictor):
    """A model whose factory takes ``num_classes``, its head sized for the targets.

    The library must be installed (``pip install torchvision``, ``pip install timm``), and trusted:
    torchvision is, for timm say ``trusted_modules=[timm]``.

    Args:
        observation_space: a Box of floats that the model takes.
        action_space: of the targets.
        model: makes the model.

    Raises:
        ValueError: the factory refuses its arguments, or the model the observations; or its
            output is neither (B, K) nor (B, D).

    """

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        model: Callable[..., nn.Module],
    ) -> None:
        super().__init__(observation_space, action_space)
        try:
            self.model = model(num_classes=self.output_dim)
        except Exception as error:  # libraries raise many kinds
            raise ValueError(f"model cannot be made: {one_line(error)}") from error
        self.check_shapes(float_shape(observation_space))

    def forward(self, obs: Tensor) -> Tensor:
        return self.model(obs)

    @torch.no_grad()
    def check_shapes(self, shape: tuple[int, ...]) -> None:
        """Show the model two observations of zeros, without training it."""
        self.model.eval()
        try:
            output = self.model(torch.zeros(2, *shape))
        except Exception as error:
            raise ValueError(
                f"model does not take observations {shape}: {one_line(error)}; timm's take another "
                "number of channels by network.model.in_chans=1"
            ) from error
        self.model.train()
        if not isinstance(output, Tensor) or output.shape != (2, self.output_dim):
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"model must return (2, {self.output_dim}), got {found}")


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
