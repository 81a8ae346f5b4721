"""What learns values of discrete actions and acts by the best of them: DQN and its successors."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from research.algs.base import Algorithm, Loss, Objective, OptimFactory, PolyakCopy
from research.algs.targets import frozen_copy
from research.batches import Transition, Tree, WeightedTransition, count_rows
from research.networks.predictor import Predictor
from research.networks.q_network import QNetwork
from research.ranges import Fraction, PositiveFraction, PositiveInt


class Noise(NamedTuple):
    """Noise (B, D) on the weights in an update, drawn for each use by itself.

    Attributes:
        network: where it is trained.
        target: of the target network.
        choice: of the network where it chooses the next action; None if it does not.

    """

    network: Tensor
    target: Tensor
    choice: Tensor | None


class QLearning(Algorithm):
    """A network of values and its target, and the best action with epsilon-greedy noise.

    A subclass says how values follow from what the network gives, and defines the loss. The next
    action is the best of the target network, or, if ``double`` is set, the best of the network (van
    Hasselt et al., 2016, https://arxiv.org/abs/1509.06461).

    A network with noise on its weights (``network.noise_scale``) explores by itself, so that both
    probabilities of a random action may be 0. Its noise is drawn for every example and every call,
    and is left out without exploration.

    Args:
        network: maps observations (B, ...) to (B, K), or to M atoms each, (B, K, M).
        optim: builds an optimizer from parameters.
        double: whether the network chooses the next action that the target network values.
        tau: share of the way to the network that the target goes at a time, in (0, 1]; 1 copies it.
        target_every: updates per move of the target, at least 1.
        explore_start: probability of a uniformly random action at step 0, in [0, 1].
        explore_end: the same from ``explore_steps`` on.
        explore_steps: environment steps over which it changes linearly, at least 1.

    Raises:
        ValueError: for a network whose actions are not discrete, or that has no atoms where they
            are needed, or has some where they are not.

    """

    min_atoms: ClassVar[int | None] = None
    """The fewest atoms of an action; None for values without atoms."""

    def __init__(
        self,
        network: Predictor,
        *,
        optim: OptimFactory,
        double: bool,
        tau: PositiveFraction,
        target_every: PositiveInt,
        explore_start: Fraction,
        explore_end: Fraction,
        explore_steps: PositiveInt,
    ) -> None:
        super().__init__()
        self.num_atoms = count_atoms(network, type(self).__name__, self.min_atoms)
        self.network = network
        self.target = frozen_copy(network)
        self.optim = optim
        self.is_double = double  # nn.Module has a method named double
        self.tau = tau
        self.target_every = target_every
        self.explore_start = explore_start
        self.explore_end = explore_end
        self.explore_steps = explore_steps

    def objectives(self) -> Sequence[Objective]:
        network, optim = self.network, self.optim
        return [
            Objective(name="q", loss=self.loss, trains=[network], optim=optim, prioritises=True)
        ]

    def copies(self) -> Sequence[PolyakCopy]:
        return [PolyakCopy(self.target, self.network, self.tau, every=self.target_every)]

    def explore_share(self, step: Tensor) -> Tensor:
        """Probability of a random action after ``step`` environment steps."""
        share = (step / self.explore_steps).clamp(max=1.0)
        return (1 - share) * self.explore_start + share * self.explore_end

    def act(self, obs: Tree, step: Tensor, explore: bool) -> Tensor:
        noise = self.draw_noise(obs) if explore else None
        best = self.values(evaluate(self.network, obs, noise)).argmax(dim=1)
        if not explore:
            return best
        is_random = torch.rand(best.shape, device=best.device) < self.explore_share(step)
        return torch.where(is_random, torch.randint_like(best, self.network.output_dim), best)

    def draw(self, batch: Transition, step: Tensor) -> Noise | None:
        """Noise on the weights; None for a network without."""
        network, target = self.draw_noise(batch), self.draw_noise(batch)
        if network is None or target is None:
            return None
        return Noise(network, target, self.draw_noise(batch) if self.is_double else None)

    def draw_noise(self, batch: Any) -> Tensor | None:
        """Noise (B, D) for a batch; None for a network without."""
        network = self.network
        return network.draw_noise(count_rows(batch)) if isinstance(network, QNetwork) else None

    def values(self, output: Tensor) -> Tensor:
        """The values (B, K) of all actions, or (B,) of one, from the network's output for them."""
        return output

    @abstractmethod
    def loss(self, batch: Transition, noise: Noise | None) -> Loss:
        """The mean of the errors of the actions that were taken, with their priorities."""

    def taken_output(self, batch: Transition, noise: Noise | None) -> Tensor:
        """What the network gives for the actions that were taken, (B,) or (B, M)."""
        output = evaluate(self.network, batch.obs, noise and noise.network)
        return pick(output, batch.action)

    @torch.no_grad()
    def next_output(self, batch: Transition, noise: Noise | None) -> Tensor:
        """What the target network gives for the best next actions, (B,) or (B, M)."""
        output = chooser = evaluate(self.target, batch.next_obs, noise and noise.target)
        if self.is_double:
            chooser = evaluate(self.network, batch.next_obs, noise and noise.choice)
        return pick(output, self.values(chooser).argmax(dim=1))


def count_atoms(network: Predictor, name: str, min_atoms: int | None) -> int:
    """The number of atoms of an action, 1 for its value.

    Raises:
        ValueError: the algorithm ``name`` cannot learn with the network.

    """
    if not isinstance(network.action_space, Discrete):
        raise ValueError(
            f"{name} chooses among discrete actions, got {network.action_space}; try alg=td3 or "
            "alg=sac, or an env with discrete actions, such as env=cartpole_gym"
        )
    num_atoms = network.num_atoms if isinstance(network, QNetwork) else None
    if min_atoms is None and num_atoms is not None:
        raise ValueError(
            f"{name} learns a value of every action, but the network gives {num_atoms} atoms; try "
            "network.num_atoms=null, or alg=c51 or alg=qrdqn"
        )
    if min_atoms is not None and (num_atoms is None or num_atoms < min_atoms):
        given = "one without" if num_atoms is None else f"{num_atoms}"
        raise ValueError(
            f"{name} needs a network with at least {min_atoms} atoms for every action, got "
            f"{given}; try network=q_network network.num_atoms=51"
        )
    return num_atoms or 1


def evaluate(network: Predictor, obs: Tree, noise: Tensor | None) -> Tensor:
    """What the network gives for observations, in at least 32 bits."""
    output = network(obs) if noise is None else network(obs, noise)
    return output.to(torch.promote_types(output.dtype, torch.float32))


def pick(output: Tensor, action: Tensor) -> Tensor:
    """The outputs (B, ...) for actions (B,), of those for all actions, (B, K, ...)."""
    index = action.long().view(-1, *[1] * (output.ndim - 1))
    return output.gather(1, index.expand(-1, 1, *output.shape[2:])).squeeze(1)


def weighted_mean(errors: Tensor, batch: Transition | WeightedTransition) -> Tensor:
    """The mean of errors (B,), each times the weight of its example if there are weights."""
    return (errors * batch.weight if isinstance(batch, WeightedTransition) else errors).mean()
