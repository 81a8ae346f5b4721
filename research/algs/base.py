"""The base class of algorithms: what they minimise, and how they act."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

from research.batches import Rollout, Tree

Metrics: TypeAlias = dict[str, Tensor]
"""Tensors without dimensions, by name."""

OptimFactory: TypeAlias = Callable[[Iterable[Any]], Optimizer]
"""Makes an optimizer of parameters, or of groups of parameters."""


class Loss(NamedTuple):
    """What a loss function returns.

    Attributes:
        value: to be minimised, without dimensions; a mean over the batch.
        metrics: other means over the batch, to be logged.
        result: tensors (B, ...) for an objective that reuses them, which gets them detached.
        priority: (B,), how wrong each example's prediction is; a prioritised dataset draws by it.

    """

    value: Tensor
    metrics: Mapping[str, Tensor] = {}
    result: Any = None
    priority: Tensor | None = None


class Stop(NamedTuple):
    """What ends an objective's steps on a rollout.

    Attributes:
        metric: name in ``Loss.metrics``.
        above: the number that it must not exceed; the step that would follow is not taken either.

    """

    metric: str
    above: float


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A loss, and the parameters that are trained to lower it.

    Attributes:
        name: names the optimizer. The loss is logged as ``{name}_loss``, or as ``loss`` if it is
            the algorithm's only one.
        loss: takes a batch and what ``Algorithm.draw`` drew for it. It must depend on these and
            on the parameters alone, and must not branch on a tensor's value.
        trains: modules and parameters; no other parameter gets a gradient.
        optim: makes the optimizer.
        every: updates per step of this objective, at least 1.
        reuses: name of an earlier objective, whose ``Loss.result`` of the same update is the third
            argument of ``loss``; None for no third argument.
        stop: what ends its steps until the next rollout; None for nothing. It makes the learner
            wait for the device in every update.
        prioritises: whether ``Loss.priority`` is there, in one objective at most.

    """

    name: str
    loss: Callable[..., Loss]
    trains: Sequence[nn.Module | nn.Parameter]
    optim: OptimFactory
    every: int = 1
    reuses: str | None = None
    stop: Stop | None = None
    prioritises: bool = False


class PolyakCopy(NamedTuple):
    """A frozen copy of a module that follows it, such as a target network.

    Attributes:
        target: the copy.
        of: the module.
        tau: the share of the way that every parameter goes at a time, in (0, 1].
        every: updates per such move, at least 1.

    """

    target: nn.Module
    of: nn.Module
    tau: float
    every: int = 1


class Acted(NamedTuple):
    """What an algorithm does for a batch of observations.

    Attributes:
        action: (B, A).
        memory: for the next steps of these episodes, like ``Algorithm.initial_memory``.
        extras: values (B, ...) to be stored with the step, by name.

    """

    action: Tensor
    memory: Any = None
    extras: Mapping[str, Tensor] = {}


class Algorithm(nn.Module, ABC):
    """A learning rule: losses and what they train, and a policy.

    The trainer's learner takes the steps. In every update it calls ``augment`` and ``draw``, takes
    a step for each objective in order, then moves the copies. The ``state_dict`` holds the weights.

    An algorithm defines ``act``; or ``act_with_memory`` if it keeps a memory within an episode, as
    recurrent networks and chunks of actions do, stores values with each step, or acts on infos.

    Attributes:
        extras: shapes of the values in ``Acted.extras``, by name.

    """

    extras: Mapping[str, tuple[int, ...]] = {}

    @abstractmethod
    def objectives(self) -> Sequence[Objective]:
        """The objectives, in the order in which an update takes their steps."""

    def copies(self) -> Sequence[PolyakCopy]:
        """The frozen copies, which move after the steps of an update.

        With ``init_from``, a copy that gets no weights of its own gets those of its module.
        """
        return ()

    def act(self, obs: Tree, step: Tensor, explore: bool) -> Tensor:
        """Actions (B, A) for observations (B, O).

        Args:
            obs: as the processor returns them, on the device.
            step: steps of the run so far, a float without dimensions on the device.
            explore: whether to add the noise of training.

        """
        raise NotImplementedError(f"{type(self).__name__} defines neither act nor act_with_memory")

    def initial_memory(self, num_envs: int) -> Any:
        """The memory with which episodes begin.

        Returns:
            a tensor (B, ...), or such tensors in dicts and tuples; None for no memory.

        """
        return None

    def act_with_memory(
        self, obs: Tree, memory: Any, info: Mapping[str, Tensor], step: Tensor, explore: bool
    ) -> Acted:
        """Actions for observations, from what is remembered of their episodes.

        Args:
            obs: (B, O), as the processor returns them, on the device.
            memory: ``initial_memory`` where an episode begins, else what the last call returned.
            info: infos (B, ...) that came with ``obs``; those in ``trainer.infos``.
            step: as for ``act``.
            explore: as for ``act``.

        """
        return Acted(self.act(obs, step, explore))

    def prepare(self, rollout: Rollout, num_envs: int) -> Any:
        """What on-policy updates learn from, computed once for each rollout, without gradients.

        Args:
            rollout: as the processor returns it, on the device.
            num_envs: E; ``tensor.view(-1, num_envs)`` is (T, E).

        Returns:
            a tensor (B, ...), or such tensors in dicts and tuples, whose rows are shuffled into
            minibatches.

        """
        return rollout

    def augment(self, batch: Any) -> Any:
        """The batch that is learned from, in place of a processed one."""
        return batch

    def draw(self, batch: Any, step: Tensor) -> Any:
        """All that the losses need besides the batch: random numbers, numbers that follow ``step``.

        Returns:
            a tensor, or tensors in tuples and dicts. Each is (B, ...), or has no dimensions.

        """
        return None

    def update(self, batch: Any, step: Tensor, optimizers: Mapping[str, Optimizer]) -> Metrics:
        """Learn from one batch in another way than by steps down the objectives' gradients.

        Only an algorithm whose steps no objective can express overrides this. Its objectives then
        only say what the optimizers train. It runs on one rank, in fp32, in whole batches.

        Args:
            batch: as the processor returns it, on the device.
            step: steps of the run so far, a float without dimensions on the device.
            optimizers: by the names of the objectives.

        """
        raise NotImplementedError

    def validate(self, batch: Any) -> Metrics:
        """Metrics of the algorithm on one batch that it does not learn from.

        Raises:
            NotImplementedError: the algorithm is evaluated in environments only.

        """
        raise NotImplementedError(f"{type(self).__name__} has no validation on batches")
