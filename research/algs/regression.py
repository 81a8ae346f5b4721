"""Learning values from examples."""

import torch.nn.functional as F
from gymnasium.spaces import Box
from torch import Tensor

from research.algs.base import Metrics
from research.algs.supervised import Supervised, check_shape
from research.batches import Example


class Regression(Supervised):
    """Squared error, averaged over the D values and the examples."""

    target_space = Box

    def compute_loss(self, output: Tensor, batch: Example) -> Tensor:
        check_shape(output, tuple(batch.target.shape))
        return F.mse_loss(output, batch.target)

    def compute_metrics(self, output: Tensor, batch: Example) -> Metrics:
        """The mean size of the error, in the units of the targets."""
        return {"absolute_error": F.l1_loss(output, batch.target)}
