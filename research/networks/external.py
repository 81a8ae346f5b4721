"""Models of other libraries, such as torchvision's and timm's."""

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from research.errors import message_of
from research.networks.predictor import Predictor, float_shape


class External(Predictor):
    """A model whose factory takes ``num_classes``, its head sized for the targets.

    If the factory also takes ``img_size`` and ``in_chans``, as timm's models do, it gets those of
    the observations. The library must be installed (``pip install torchvision``,
    ``pip install timm``) and trusted: torchvision and timm's ``VisionTransformer`` are; for the
    rest of timm, set ``trusted_modules=[timm]``.

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
        shape = float_shape(observation_space)
        try:
            self.model = model(num_classes=self.output_dim, **image_options(model, shape))
        except Exception as error:  # libraries raise many kinds
            raise ValueError(f"model cannot be made: {message_of(error)}") from error
        self.check_shapes(shape)

    def forward(self, obs: Tensor) -> Tensor:
        return self.model(obs)

    @torch.no_grad()
    def check_shapes(self, shape: tuple[int, ...]) -> None:
        """Check the model's output for two observations of zeros, in evaluation mode."""
        self.model.eval()
        try:
            output = self.model(torch.zeros(2, *shape))
        except Exception as error:
            raise ValueError(
                f"model does not take observations {shape}: {message_of(error)}; timm.create_model "
                "takes another number of channels by network.model.in_chans=1"
            ) from error
        self.model.train()
        check_patches(self.model, shape)
        if not isinstance(output, Tensor) or output.shape != (2, self.output_dim):
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"model must return (2, {self.output_dim}), got {found}")


def image_options(model: Callable[..., nn.Module], shape: tuple[int, ...]) -> dict[str, Any]:
    """The arguments of ``model`` for the size of images (C, H, W), unless it has them already."""
    if len(shape) != 3:
        return {}
    open_names = set(inspect.signature(model).parameters) - set(getattr(model, "keywords", ()))
    sizes = {"img_size": shape[1:], "in_chans": shape[0]}
    return {name: size for name, size in sizes.items() if name in open_names}


def check_patches(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse images (C, H, W) that a timm model would cut off, because patches do not divide them.

    Raises:
        ValueError: the size of a patch does not divide a side.

    """
    embed = getattr(model, "patch_embed", None)
    if getattr(embed, "dynamic_img_pad", False):
        return
    for side, size in zip(shape[1:], getattr(embed, "patch_size", ()), strict=False):
        if side % size:
            raise ValueError(
                f"patch_size must divide the images' sides {shape[1]} and {shape[2]}, got {size}; "
                "the rest of an image would be cut off"
            )
