"""Stacks of an episode's newest frames, made from rows that hold one frame each."""

from typing import Any, TypeGuard

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from research.datasets.replay.storage import Leaf, send
from research.errors import UserError


class FrameStacks:
    """Stacks of S frames (S * C, H, W), the oldest first; step t of an episode sees t-S+1 to t.

    Copies of an episode's first frame take the place of frames before it.

    Args:
        space: of the stacks.
        frame_stack: S, at least 2.
        n_step: largest number of steps between the two stacks of a transition.

    Attributes:
        leaf: shape and type of one frame, which is what a row holds of a stack.

    Raises:
        ValueError: the elements of ``space`` are no such stacks.

    """

    def __init__(self, space: gymnasium.Space[Any], *, frame_stack: int, n_step: int) -> None:
        if not may_be_stacks(space) or space.shape[0] % frame_stack:
            raise ValueError(
                f"{frame_stack} stacked frames must be a Box of uint8 ({frame_stack} * C, H, W), "
                f"got {space}"
            )
        self.shape = space.shape
        self.num_channels = space.shape[0] // frame_stack
        self.leaf = Leaf((self.num_channels, *space.shape[1:]), torch.uint8)
        # Stacks one step apart share S - 1 frames, which are gathered once.
        back = list(range(1 - frame_stack, 1))
        self._offsets = torch.tensor([*back, 1] if n_step == 1 else back * 2, dtype=torch.int32)
        self._is_next = torch.tensor([0] * frame_stack + [1] * frame_stack, dtype=torch.int32)

    def newest(self, stacks: np.ndarray) -> np.ndarray:
        """The newest frames (E, C, H, W) of ``stacks`` (E, S * C, H, W)."""
        if stacks.shape[1:] != self.shape:
            raise UserError(
                f"the environment gave stacked frames of shape {stacks.shape[1:]}, but its space "
                f"says {self.shape}"
            )
        return stacks[:, -self.num_channels :]

    def check_first(self, stacks: np.ndarray) -> None:
        """Refuse stacks (E, S * C, H, W) that an episode cannot begin with.

        Raises:
            ValueError: the frames of a stack differ, but a row holds only one.

        """
        frames = stacks.reshape(len(stacks), -1, *self.leaf.shape)
        if (frames != frames[:, -1:]).any():
            raise ValueError(
                "an episode must begin with a stack of equal frames, its first observation's; "
                "got frames that differ"
            )

    def gather(
        self, frames: Tensor, starts: Tensor, num_earlier: Tensor, num_steps: Tensor | None
    ) -> Tensor:
        """The frames of the stacks at rows ``starts`` (B,) and ``num_steps`` (B,) later.

        Args:
            frames: (num_rows, C * H * W), those of an episode in order.
            starts: on the host, like ``num_earlier`` and ``num_steps``.
            num_earlier: (B,), number of rows of the episode before each start, at most S - 1.
            num_steps: None if ``n_step`` is 1; then the two stacks share frames.

        Returns:
            frames (B, F * C, H, W), to be cut by ``cut``.

        """
        offsets = self._offsets
        if num_steps is not None:
            offsets = offsets + num_steps[:, None] * self._is_next
        rows = starts[:, None] + offsets.maximum(-num_earlier[:, None])
        return gather(frames, rows.view(-1)).view(len(starts), -1, *self.shape[1:])

    def cut(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the last stacks (B, S * C, H, W) of gathered frames."""
        return frames[:, : self.shape[0]], frames[:, -self.shape[0] :]


def may_be_stacks(space: gymnasium.Space[Any]) -> TypeGuard[spaces.Box]:
    """Whether the elements of a space are uint8 (channels, H, W)."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def gather(frames: Tensor, rows: Tensor) -> Tensor:
    """``frames`` of these rows, in new memory on the same device."""
    if frames.device.type != "cpu":
        return frames.index_select(0, send(rows, frames.device))
    # numpy asks for huge pages: allocating a batch in small ones can take longer than the copy.
    selected = torch.from_numpy(np.empty((len(rows), frames.shape[1]), np.uint8))
    return torch.index_select(frames, 0, rows, out=selected)
