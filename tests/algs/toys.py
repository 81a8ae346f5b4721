"""Small algorithms of kinds that conf/alg has none of, and a dataset: what holds for all must hold.

Their yamls are in ``tests/algs/conf``.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from research.algs.base import Algorithm, Loss, Objective, OptimFactory, PolyakCopy
from research.algs.targets import frozen_copy
from research.batches import Example, Step, Transition
from research.datasets.replay.buffer import Environments
from research.networks.predictor import Predictor


class Cloning(Algorithm):
    """Learns from examples what action to take, and is evaluated in an environment."""

    def __init__(self, network: Predictor, *, optim: OptimFactory) -> None:
        super().__init__()
        self.network = network
        self.optim = optim

    def objectives(self) -> Sequence[Objective]:
        network = self.network
        return [Objective(name="network", loss=self.loss, trains=[network], optim=self.optim)]

    def act(self, obs: Tensor, step: Tensor, explore: bool) -> Tensor:
        return self.network(obs).tanh()

    def loss(self, batch: Example, noise: None) -> Loss:
        return Loss(F.mse_loss(self.network(batch.obs).tanh(), batch.target))


class QLearning(Algorithm):
    """Values of a few actions that have no order, one of which is taken."""

    def __init__(self, network: Predictor, *, optim: OptimFactory, explore_share: float) -> None:
        super().__init__()
        self.network = network
        self.target = frozen_copy(network)
        self.optim = optim
        self.explore_share = explore_share

    def objectives(self) -> Sequence[Objective]:
        network = self.network
        return [Objective(name="critic", loss=self.loss, trains=[network], optim=self.optim)]

    def copies(self) -> Sequence[PolyakCopy]:
        return [PolyakCopy(self.target, self.network, 0.01)]

    def act(self, obs: Tensor, step: Tensor, explore: bool) -> Tensor:
        best = self.network(obs).argmax(dim=1)
        if not explore:
            return best
        is_random = torch.rand(len(best)) < self.explore_share
        return torch.where(is_random, torch.randint_like(best, self.network.output_dim), best)

    def loss(self, batch: Transition, noise: None) -> Loss:
        q = self.network(batch.obs).gather(1, batch.action[:, None]).squeeze(1)
        with torch.no_grad():
            target_q = batch.reward + batch.discount * self.target(batch.next_obs).amax(dim=1)
        return Loss(F.mse_loss(q, target_q))


class NewestSteps:
    """The last steps of the environments, all of which are the next batch."""

    batches_per_epoch: int | None = None

    def __init__(self, env: Environments, seed: int, *, horizon: int, discount: float) -> None:
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self.discount = discount
        self.obs = torch.zeros(env.num_envs, *(self.observation_space.shape or ()))
        self.steps: deque[Iterable[Tensor]] = deque(maxlen=horizon)

    def __len__(self) -> int:
        return len(self.steps)

    def start_episodes(
        self, obs: Any, mask: np.ndarray, info: Mapping[str, np.ndarray] | None = None
    ) -> None:
        mask = mask.reshape(-1, *[1] * (self.obs.ndim - 1))
        self.obs = torch.where(torch.from_numpy(mask), torch.from_numpy(obs), self.obs)

    def add(self, step: Step) -> None:
        discount = self.discount * ~step.terminated
        values = (torch.tensor(v) for v in (step.action, step.reward, discount, step.next_obs))
        action, reward, discount_, next_obs = values
        self.steps.append((self.obs, action, reward.float(), discount_.float(), next_obs))
        self.obs = next_obs

    def end_open_episodes(self, mask: np.ndarray) -> None:
        """Nothing: no step knows of the next."""

    def sample(self) -> Transition:
        return Transition(*(torch.cat(parts) for parts in zip(*self.steps, strict=True)))

    def save(self, folder: Path) -> dict[str, Any]:
        return {"obs": self.obs, "steps": [list(step) for step in self.steps]}

    def load(self, state: dict[str, Any], folder: Path) -> None:
        self.obs = state["obs"]
        self.steps.clear()
        self.steps.extend(state["steps"])
