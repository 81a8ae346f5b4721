"""Environments, datasets and algorithms whose every number can be told in advance."""

import copy
import csv
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor, nn

from research import batches
from research.algs.base import Algorithm, Loss, Metrics, Objective, OptimFactory
from research.batches import ArrayTree, Transition
from research.processors.base import Identity
from research.training.policy import Policy

OBS_SPACE = Box(-np.inf, np.inf, (4,), np.float32)
ACTION_SPACE = Box(-1, 1, (1,), np.float32)
ADAM = partial(torch.optim.Adam, lr=0.05)


class Count(gymnasium.Env):
    """Observes (seed modulo 2**20, episodes begun, steps since the reset, last action).

    The reward is the number of steps, and so is ``info["bonus"]``. An episode has ``length`` steps;
    None for 1 to 4, by its seed.
    """

    observation_space = OBS_SPACE
    action_space = ACTION_SPACE

    def __init__(self, *, length: int | None = None, truncates: bool = False) -> None:
        self.length = length
        self.truncates = truncates
        self.episodes = 0
        self.total_steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        assert seed is not None, "every episode has a seed"
        self.seed, self.steps, self.action = seed, 0, 0.0
        self.episodes += 1
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.steps < self.last_step, "the episode is over"
        self.steps += 1
        self.total_steps += 1
        self.action = float(action[0])
        over = self.steps == self.last_step
        terminated, truncated = over and not self.truncates, over and self.truncates
        return self.observe(), float(self.steps), terminated, truncated, {"bonus": self.steps}

    @property
    def last_step(self) -> int:
        return self.seed % 4 + 1 if self.length is None else self.length

    def observe(self) -> np.ndarray:
        return np.array([self.seed % 2**20, self.episodes, self.steps, self.action], np.float32)


def vector(
    num_envs: int = 1, *, length: int | None = None, truncates: bool = False
) -> SyncVectorEnv:
    """Copies of ``Count`` that leave resets to their caller."""
    make = partial(Count, length=length, truncates=truncates)
    return SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


class Script(VectorEnv):
    """Observes (environment, episode, steps since its reset, 0), in each of gymnasium's modes.

    Environment e's episodes have the lengths ``lengths[e]``, in turn; those of odd length are
    truncated. The reward is ``10 * episode + time``, and so are three infos. What a call that
    resets returns beside the observation is nonsense.
    """

    single_observation_space = OBS_SPACE
    single_action_space = ACTION_SPACE

    def __init__(self, lengths: Sequence[Sequence[int]], mode: AutoresetMode) -> None:
        self.lengths, self.num_envs = lengths, len(lengths)
        self.metadata = {"autoreset_mode": mode}
        self.observation_space = batch_space(OBS_SPACE, self.num_envs)
        self.action_space = batch_space(ACTION_SPACE, self.num_envs)
        self.episode, self.time = np.full(self.num_envs, -1), np.zeros(self.num_envs, np.int64)
        self.over = np.zeros(self.num_envs, np.bool_)
        self.seeds: list[Any] = []

    def begin(self, mask: np.ndarray) -> None:
        self.episode[mask] += 1
        self.time[mask] = 0

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        mode = self.metadata["autoreset_mode"]
        assert (options is None) == isinstance(seed, int) == (mode is not AutoresetMode.DISABLED)
        self.seeds.append(copy.copy(seed))
        self.over[:] = False
        self.begin(options["reset_mask"] if options else ~self.over)
        return self.observe(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        reset, mode = self.over, self.metadata["autoreset_mode"]
        assert mode is not AutoresetMode.DISABLED or not reset.any(), "the episode is over"
        self.time += 1
        self.begin(reset)
        scripts = zip(self.lengths, self.episode, strict=True)
        length = np.array([script[index % len(script)] for script, index in scripts])
        over = (self.time == length) & ~reset
        reward = np.where(reset, 777.0, 10.0 * self.episode + self.time)
        infos: dict[str, Any] = {}
        for name in ("bonus", "success", "distance"):
            infos[name], infos[f"_{name}"] = reward, np.ones(self.num_envs, np.bool_)
        if mode is AutoresetMode.SAME_STEP:
            masks = {name: over for name in infos if name.startswith("_")}
            nonsense = {name: np.where(over, 777, infos[name]) for name in ("bonus", "success")}
            infos = {**infos, **nonsense, "final_info": {**infos, **masks}, "_final_info": over}
            infos["final_obs"] = np.where(over[:, None], self.observe(), -1)
            self.begin(over)
        else:
            self.over = over
        is_odd = length % 2 == 1
        return self.observe(), reward, over & ~is_odd, over & is_odd, infos

    def observe(self) -> np.ndarray:
        columns = np.arange(self.num_envs), self.episode, self.time, 0 * self.time
        return np.stack(columns, axis=1).astype(np.float32)


class Step(NamedTuple):
    """One step of one environment, as it came to the dataset."""

    env: int
    obs: np.ndarray
    action: float
    reward: float
    terminated: bool
    truncated: bool
    next_obs: np.ndarray


class Tape:
    """Keeps every step that comes, in order."""

    batches_per_epoch: int | None = None
    observation_space: gymnasium.Space[Any] = OBS_SPACE
    action_space: gymnasium.Space[Any] = ACTION_SPACE

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.obs: dict[int, np.ndarray] = {}
        self.cut = 0

    def __len__(self) -> int:
        return len(self.steps)

    def start_episodes(
        self, obs: ArrayTree, mask: np.ndarray, info: Mapping[str, np.ndarray] | None = None
    ) -> None:
        assert isinstance(obs, np.ndarray)
        for env in np.flatnonzero(mask).tolist():
            assert env not in self.obs, "an episode is running"
            self.obs[env] = obs[env].copy()

    def add(self, step: batches.Step) -> None:
        assert isinstance(step.next_obs, np.ndarray)
        active = np.ones(len(step.reward)) if step.active is None else step.active
        for env in np.flatnonzero(active).tolist():
            over = bool(step.terminated[env]), bool(step.truncated[env])
            taped = Step(
                env,
                self.obs.pop(env),
                float(step.action[env, 0]),
                float(step.reward[env]),
                *over,
                step.next_obs[env].copy(),
            )
            self.steps.append(taped)
            if not any(over):
                self.obs[env] = taped.next_obs

    def end_open_episodes(self, mask: np.ndarray) -> None:
        for env in np.flatnonzero(mask).tolist():
            self.cut += self.obs.pop(env, None) is not None

    def sample(self) -> Transition:
        """The newest step."""
        step = self.steps[-1]
        return Transition(
            torch.from_numpy(step.obs)[None],
            torch.tensor([[step.action]]),
            torch.tensor([step.reward]),
            torch.tensor([0.0]),
            torch.from_numpy(step.next_obs)[None],
        )

    def save(self, folder: Path) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any], folder: Path) -> None:
        assert state == {}


class Toy(Algorithm):
    """Predicts the reward by a linear map with dropout, and acts by another one with noise."""

    def __init__(self, *, optim: OptimFactory = ADAM) -> None:
        super().__init__()
        self.actor = nn.Linear(4, 1)
        self.critic = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1))
        self.optim = optim

    def objectives(self) -> Sequence[Objective]:
        trains = [self.critic]
        return [Objective(name="critic", loss=self.critic_loss, trains=trains, optim=self.optim)]

    def act(self, obs: Any, step: Tensor, explore: bool) -> Tensor:
        action = self.actor(obs / 2**20)
        noise = torch.randn_like(action) if explore else 0.0
        return (action + noise).clamp(-1, 1)

    def critic_loss(self, batch: Transition, noise: None) -> Loss:
        return Loss((self.critic(batch.obs / 2**20)[:, 0] - batch.reward).square().mean())


class Points:
    """x in [0, 1), y = 2 x - 1: batches of 4 for learning, and 3 + 1 examples apart."""

    batches_per_epoch: int | None = 5
    num_validation = 4
    observation_space: gymnasium.Space[Any] = OBS_SPACE
    action_space: gymnasium.Space[Any] = ACTION_SPACE

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def sample(self) -> tuple[Tensor, Tensor]:
        x = torch.rand(4, 1, generator=self.generator)
        return x, 2 * x - 1

    def validation_batches(
        self, first: int = 0, count: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        batches = (torch.tensor([[0.0], [0.1], [0.2]]), torch.tensor([[1.0]]))
        for index in range(first, first + (count or 2)):
            x = batches[index % 2]
            yield x, 2 * x - 1

    def save(self, folder: Path) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load(self, state: dict[str, Any], folder: Path) -> None:
        self.generator.set_state(state["generator"])


class Regression(Algorithm):
    """y = a x + b by gradient descent, with a pinch of the global generator's noise."""

    def __init__(self, *, optim: OptimFactory = ADAM) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.optim = optim

    def objectives(self) -> Sequence[Objective]:
        return [Objective(name="line", loss=self.loss, trains=[self.line], optim=self.optim)]

    def act(self, obs: Any, step: Tensor, explore: bool) -> Tensor:
        return self.line(obs)

    def draw(self, batch: tuple[Tensor, Tensor], step: Tensor) -> Tensor:
        return torch.randn_like(batch[0])

    def loss(self, batch: tuple[Tensor, Tensor], noise: Tensor) -> Loss:
        x, y = batch
        return Loss((self.line(x + 1e-3 * noise) - y).square().mean())

    def validate(self, batch: tuple[Tensor, Tensor]) -> Metrics:
        x, y = batch
        return {"error": (self.line(x) - y).square().mean()}


def make_policy(alg: Algorithm) -> Policy:
    """``alg`` without processing."""
    return Policy(alg, Identity(OBS_SPACE, ACTION_SPACE))


def rows(path: Path) -> list[Mapping[str, float]]:
    """A log's rows, without their empty cells."""
    with path.open() as file:
        return [
            {name: float(cell) for name, cell in row.items() if cell}
            for row in csv.DictReader(file)
        ]
