"""The base class of supervised learning: everything except the loss."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any, ClassVar, Literal, TypeAlias

import gymnasium
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.optim import Optimizer

from research.algs.base import Algorithm, Metrics
from research.algs.loss_scaler import LossScaler
from research.batches import Example, Tree, map_tensors
from research.errors import UserError
from research.networks.mlp import EnsembleLayerNorm
from research.networks.predictor import Predictor
from research.networks.targets import frozen_copy, polyak_update
from research.parallel.batch_norm import has_batch_norm, synchronise_batch_norm
from research.parallel.sums import count_examples, is_parallel, sum_over_ranks
from research.ranges import Decay, PositiveInt

GroupedOptimFactory: TypeAlias = Callable[[list[dict[str, Any]]], Optimizer]

AUTOCAST: dict[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
REMEDIES: dict[type[gymnasium.Space], str] = {
    Discrete: "try alg=regression, or, if these are labels, store integers or say how many classes "
    "there are, as in dataset.num_classes=2",
    Box: "try alg=classification, or, if these are numbers to learn, store floats or set "
    "dataset.num_classes=0 for a file's integers",
}
"""Advice for targets of another kind, by the kind that the algorithm learns."""

UNDECAYED = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm, EnsembleLayerNorm)


class Supervised(Algorithm):
    """Minimises a loss that is a mean over examples; a subclass defines the loss.

    Weight decay, if the optimizer has any, is for matrices and convolutions alone, not for biases,
    norms, embeddings, tokens and positions.

    With several ranks, each learns from a share of the batch. Gradients are those of the whole
    batch, and so are the statistics of batch normalisation, which then needs GPUs. With
    ``accumulate`` above 1 these statistics are those of a part of the batch, which consists of
    other examples than on one rank.

    Args:
        network: maps observations (B, ...) to scores or values (B, D).
        optim: builds an optimizer from two groups of parameters, decayed and not.
        accumulate: number of parts into which a batch is cut to save memory, at least 1; their
            gradients are summed.
        ema_decay: decay, in (0, 1), of an exponential moving average of the weights, which
            validation and acting then use (Polyak and Juditsky, 1992); None for no average.
        precision: of the network's arithmetic; weights and losses are always fp32. With fp16,
            updates whose gradients overflow are skipped; ``skipped_share`` is their share.
        compile: whether training compiles the network (torch.compile).

    Raises:
        ValueError: for a network for targets of another kind.

    """

    target_space: ClassVar[type[gymnasium.Space]]
    """The kind of targets that the loss takes."""

    def __init__(
        self,
        network: Predictor,
        *,
        optim: GroupedOptimFactory,
        accumulate: PositiveInt,
        ema_decay: Decay | None,
        precision: Literal["fp32", "bf16", "fp16"],
        compile: bool,
    ) -> None:
        super().__init__()
        if not isinstance(network.action_space, self.target_space):
            raise ValueError(
                f"{type(self).__name__} learns targets in a {self.target_space.__name__}, got "
                f"{network.action_space}; {REMEDIES.get(self.target_space, 'try another alg')}"
            )
        self.network = network
        self.average = None if ema_decay is None else frozen_copy(network)
        self.scaler = LossScaler(self.device) if precision == "fp16" else None
        self.optim = optim
        self.accumulate = accumulate
        self.ema_decay = ema_decay
        self.autocast_dtype = AUTOCAST[precision]
        self.is_compiled = compile

    def make_optimizers(self) -> None:
        if is_parallel():
            synchronise_batch_norm(self.network, self.device)
        self.network_optim = self.optim(group_parameters(self.network))
        for network in (self.network, self.average):
            if self.is_compiled and network is not None:
                network.compile()  # in place, so that the weights keep their names

    def copies(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        return [] if self.average is None else [(self.average, self.network)]

    @torch.no_grad()
    def act(self, obs: Tree, step: int, explore: bool) -> Tensor:
        """The network's outputs (B, D), whether to explore or not."""
        return self.predict(self.network if self.average is None else self.average, obs)

    def update(self, batch: Example, *, step: int, updates: int) -> Metrics:
        metrics = self.compute_gradients(self.augment(batch))
        parameters = [p for group in self.network_optim.param_groups for p in group["params"]]
        metrics = sum_over_ranks(parameters, metrics)
        if self.scaler is None:
            self.network_optim.step()
        else:
            self.is_skipped = not self.scaler.step(self.network_optim)
            metrics["skipped_share"] = torch.tensor(float(self.is_skipped), device=self.device)
        if self.average is not None and self.ema_decay is not None and not self.is_skipped:
            polyak_update(self.network, self.average, 1 - self.ema_decay)
        return metrics

    def compute_gradients(self, batch: Example) -> Metrics:
        """Compute the gradients of the batch's loss; returns means over the batch.

        With several ranks, both are this rank's terms of the sums over the whole batch.

        Raises:
            UserError: a rank's share of the batch has fewer examples than ``accumulate``.

        """
        self.network_optim.zero_grad()
        metrics: Metrics = {}
        size = len(batch.target)
        if size < self.accumulate and is_parallel():
            raise UserError(
                f"a rank's share of a batch has {size} examples, fewer than "
                f"alg.accumulate={self.accumulate}; raise dataset.batch_size"
            )
        count = count_examples(size, batch.target.device)
        for part in cut(batch, self.accumulate):
            share = len(part.target) / count
            output = self.predict_part(part)
            loss = self.loss(output, part)
            summand = loss if is_one(share) else loss * share
            (summand if self.scaler is None else self.scaler.scale(summand)).backward()
            for name, value in self.rate(loss.detach(), output.detach(), part).items():
                summand = value if is_one(share) else value * share
                metrics[name] = metrics[name] + summand if name in metrics else summand
        return metrics

    def predict_part(self, part: Example) -> Tensor:
        """The network's outputs in training.

        Raises:
            UserError: batch normalisation gets a single value of a channel.

        """
        try:
            return self.predict(self.network, part.obs)
        except ValueError as error:
            if len(part.target) > 1 or not has_batch_norm(self.network):
                raise
            raise UserError(
                "batch normalisation needs more than one example at once; raise "
                f"dataset.batch_size, or lower alg.accumulate={self.accumulate}"
            ) from error

    @torch.no_grad()
    def validate(self, batch: Example) -> Metrics:
        """The metrics of training, of the weights that act; expects evaluation mode."""
        output = self.predict(self.network if self.average is None else self.average, batch.obs)
        return self.rate(self.loss(output, batch), output, batch)

    @abstractmethod
    def loss(self, output: Tensor, batch: Example) -> Tensor:
        """The mean over the batch of every example's loss, without dimensions.

        It must be the sum over the examples divided by B: parts of a batch are weighted by their
        number of examples.
        """

    def compute_metrics(self, output: Tensor, batch: Example) -> Metrics:
        """Other means over the batch, without gradients."""
        return {}

    def augment(self, batch: Example) -> Example:
        """The batch to learn from in place of a training batch."""
        return batch

    def predict(self, network: nn.Module, obs: Tree) -> Tensor:
        """The network's outputs, computed in ``precision``."""
        if self.autocast_dtype is None:
            return network(obs)
        with torch.autocast(self.device.type, self.autocast_dtype):
            return network(obs).float()

    def rate(self, loss: Tensor, output: Tensor, batch: Example) -> Metrics:
        """All metrics of one batch or part."""
        return {"loss": loss, **self.compute_metrics(output, batch)}

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device


def check_shape(output: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse a network's ``output`` that the loss would broadcast or misread.

    Raises:
        UserError: it is not of the ``expected`` shape.

    """
    if output.shape != expected:
        raise UserError(
            f"the network returns {tuple(output.shape)} for a batch, but the loss needs {expected}"
        )


def is_one(share: float | Tensor) -> bool:
    """Whether weighting by ``share`` can be skipped, to save time; does not wait for a GPU."""
    return isinstance(share, float) and share == 1.0


def cut(batch: Example, num_parts: int) -> Iterator[Example]:
    """Parts of nearly equal size, none empty."""
    if num_parts == 1:
        yield batch
        return
    size = len(batch.target)
    edges = [index * size // num_parts for index in range(num_parts + 1)]
    for start, end in pairwise(edges):
        if start < end:
            yield map_tensors(itemgetter(slice(start, end)), batch)


def group_parameters(network: nn.Module) -> list[dict[str, Any]]:
    """The trained parameters in two groups, of which the second has no weight decay."""
    decays: dict[nn.Parameter, bool] = {}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                is_matrix = "weight" in name and parameter.ndim > 1
                decays.setdefault(parameter, is_matrix and not isinstance(module, UNDECAYED))
    return [
        {"params": [parameter for parameter, decayed in decays.items() if decayed]},
        {
            "params": [parameter for parameter, decayed in decays.items() if not decayed],
            "weight_decay": 0.0,
        },
    ]
