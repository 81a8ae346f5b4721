"""The loss of distributions that are told by quantiles."""

import torch
import torch.nn.functional as F
from torch import Tensor


def quantile_huber_loss(quantiles: Tensor, target: Tensor, kappa: float = 1.0) -> Tensor:
    """How far quantiles are from a distribution.

    Dabney et al., 2018, https://arxiv.org/abs/1710.10044, equations 9 and 10; but a mean over
    quantiles and atoms, as in the code of TQC's authors.

    Args:
        quantiles: (..., B, M), of the probabilities (m + 0.5) / M.
        target: atoms (B, K), all of the same probability.
        kappa: size of an error beyond which the Huber loss is linear, above 0.

    Returns:
        (..., B).

    """
    num_quantiles = quantiles.shape[-1]
    midpoints = torch.arange(num_quantiles, dtype=quantiles.dtype, device=quantiles.device) + 0.5
    predicted, target = torch.broadcast_tensors(quantiles[..., None], target[:, None, :])
    huber = F.huber_loss(predicted, target, reduction="none", delta=kappa)
    is_below = (target < predicted.detach()).to(huber.dtype)
    weight = (midpoints[:, None] / num_quantiles - is_below).abs()
    return (weight * huber).mean(dim=(-2, -1))
