"""Learning classes from examples."""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from gymnasium.spaces import Discrete
from torch import Tensor

from research.algs.base import Metrics, OptimFactory
from research.algs.supervised import Supervised, check_shape
from research.batches import Example, Tree, map_tensors
from research.networks.predictor import Predictor
from research.ranges import FractionBelowOne


class Classification(Supervised):
    """Cross entropy over K classes, with label smoothing, class weights and mixup.

    Mixup: Zhang et al., 2018, https://arxiv.org/abs/1710.09412, one mixture per batch. Validation
    uses the class weights, but neither mixup nor smoothing.

    Deviations:
        The weighted loss is divided by the number of examples, not by the sum of their weights, so
        that an example counts the same in every batch.

    Args:
        network: gives scores (B, K).
        optim: builds an optimizer from groups of parameters.
        label_smoothing: share of a target that is spread over all classes, in [0, 1); Szegedy et
            al., 2016, https://arxiv.org/abs/1512.00567.
        class_weights: factors of the losses of the K classes, at least 0; None for 1.
        top_k: ``top{k}_accuracy`` is the share of targets among the k highest scores, 2 to K; None
            for no such metric.
        mixup_alpha: parameter of the beta distribution of mixtures, at least 0; 0 for no mixup.

    Raises:
        ValueError: for class weights or ``top_k`` that do not suit the number of classes, or a
            network for other targets than classes.

    """

    target_space = Discrete
    class_weights: Tensor | None

    def __init__(
        self,
        network: Predictor,
        *,
        optim: OptimFactory,
        label_smoothing: FractionBelowOne,
        class_weights: Sequence[float] | None,
        top_k: int | None,
        mixup_alpha: Annotated[float, Interval(ge=0, lt=math.inf)],
    ) -> None:
        super().__init__(network, optim=optim)
        num_classes = network.output_dim
        if class_weights is not None and not are_weights(class_weights, num_classes):
            raise ValueError(
                f"class_weights must be null or {num_classes} numbers of at least 0, not all 0, "
                f"got {list(class_weights)}"
            )
        if top_k is not None and not 2 <= top_k <= num_classes:
            raise ValueError(f"top_k must be null or in [2, {num_classes}], got {top_k}")
        weights = None
        if class_weights is not None:
            device = next(network.parameters()).device
            weights = torch.tensor(class_weights, dtype=torch.float, device=device)
        self.register_buffer("class_weights", weights, persistent=False)
        self.label_smoothing = label_smoothing
        self.top_k = top_k
        self.mixup_alpha = mixup_alpha

    def act(self, obs: Tree, step: Tensor, explore: bool) -> Tensor:
        """The class with the highest score, (B,) int64."""
        return super().act(obs, step, explore).argmax(dim=-1)

    def augment(self, batch: Example) -> Example:
        """The batch mixed with itself in another order; targets become shares of classes (B, K)."""
        if self.mixup_alpha == 0:
            return batch
        device = batch.target.device
        alpha = torch.full((), self.mixup_alpha, device=device)  # a tensor would wait for a GPU
        share = torch.distributions.Beta(alpha, alpha, validate_args=False).sample()
        return mix(
            batch._replace(target=self.one_hot(batch.target)),
            torch.randperm(len(batch.target), device=device),
            share,
        )

    def compute_loss(self, output: Tensor, batch: Example) -> Tensor:
        check_shape(output, (len(batch.target), self.network.output_dim))
        smoothing = self.label_smoothing if self.training else 0.0
        if self.class_weights is None:
            return F.cross_entropy(output, batch.target, label_smoothing=smoothing)
        losses = F.cross_entropy(
            output,
            batch.target,
            weight=self.class_weights,
            reduction="none",
            label_smoothing=smoothing,
        )
        return losses.mean()

    def compute_metrics(self, output: Tensor, batch: Example) -> Metrics:
        """Accuracy, and top-k accuracy if ``top_k`` is set; mixed targets count by their shares."""
        target = batch.target
        if self.top_k is None and not target.is_floating_point():
            return {"accuracy": (output.argmax(dim=1) == target).float().mean()}
        shares = target if target.is_floating_point() else self.one_hot(target)
        metrics = {"accuracy": shares.gather(1, output.argmax(dim=1, keepdim=True)).sum(1).mean()}
        if self.top_k is not None:
            best = output.topk(self.top_k, dim=1).indices
            metrics[f"top{self.top_k}_accuracy"] = shares.gather(1, best).sum(1).mean()
        return metrics

    def one_hot(self, target: Tensor) -> Tensor:
        """Targets (B,) as shares of the classes, (B, K)."""
        return F.one_hot(target, self.network.output_dim).float()


def mix(batch: Example, order: Tensor, share: Tensor) -> Example:
    """``share`` of every tensor plus 1 - ``share`` of it in another ``order``, (B,) int64."""
    return map_tensors(lambda tensor: share * tensor + (1 - share) * tensor[order], batch)


def are_weights(values: Sequence[float], count: int) -> bool:
    """Whether ``values`` are ``count`` finite numbers of at least 0, not all 0."""
    return len(values) == count and all(0 <= v < math.inf for v in values) and any(values)
