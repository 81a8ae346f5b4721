"""The steps of one rollout at a time, for on-policy algorithms."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from research.batches import ArrayTree, Rollout, Step, list_tensors, map_tensors
from research.datasets.replay.buffer import Environments
from research.datasets.replay.storage import Leaf, leaf_of
from research.errors import UserError
from research.machine.memory import require_memory
from research.ranges import Fraction, PositiveInt


class RolloutBuffer:
    """T steps of each of E environments; learned from in shuffled minibatches, then overwritten.

    A batch has about T * E / M rows. Every row is in one batch of an epoch. Steps that an
    environment spent on a reset are in none.

    Args:
        env: vector environment; its spaces define what a step holds.
        seed: of the buffer's own generator, which shuffles.
        horizon: T.
        minibatches: M, per epoch.
        discount: gamma per environment step, in [0, 1].

    Attributes:
        observation_space: of one environment.
        action_space: of one environment.

    Raises:
        ValueError: the steps of a rollout do not fit in memory, or there are fewer than
            ``minibatches``.

    """

    batches_per_epoch: int | None = None

    def __init__(
        self,
        env: Environments,
        seed: int,
        *,
        horizon: PositiveInt,
        minibatches: PositiveInt,
        discount: Fraction,
    ) -> None:
        if env.num_envs < 1:
            raise ValueError("a rollout needs an environment that fills it, env has none")
        if horizon * env.num_envs < minibatches:
            raise ValueError(
                f"a rollout of {horizon} steps in each of {env.num_envs} environments has too few "
                f"for {minibatches} minibatches"
            )
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self.num_envs = env.num_envs
        self.horizon = horizon
        self.minibatches = minibatches
        self.discount = discount
        self._obs = make_arrays(self.observation_space, "observations", (env.num_envs,))
        self._info: dict[str, np.ndarray] = {}
        self._columns = {
            "obs": self._over_time(self._obs),
            "action": make_arrays(self.action_space, "actions", (horizon, env.num_envs)),
            "reward": np.zeros((horizon, env.num_envs), np.float32),
            "discount": np.zeros((horizon, env.num_envs), np.float32),
            "next_obs": self._over_time(self._obs),
            "over": np.zeros((horizon, env.num_envs), np.bool_),
            "extras": {},
            "info": {},
            "next_info": {},
        }
        self._is_step = np.zeros((horizon, env.num_envs), np.bool_)
        size = sum(array.nbytes for array in list_arrays(self._columns))
        what = f"a rollout of {horizon * env.num_envs:,} steps"
        require_memory(size, what, torch.device("cpu"), "lower trainer.pace.horizon")
        self._time = 0
        self._is_taken = False
        self._rows: Any = None
        self._batches: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(seed)
        self._rank, self._num_ranks = 0, 1

    def __len__(self) -> int:
        """Number of steps of the rollout so far, those spent on resets included."""
        return self._time * self.num_envs

    def hold(
        self, extras: Mapping[str, tuple[int, ...]], info: Mapping[str, tuple[int, ...]]
    ) -> None:
        """Store these values with every step, of the given shapes; before the first step."""
        self._info = zeros(info, self.num_envs)
        stored = zeros(extras, self.num_envs)
        for key, values in (("extras", stored), ("info", self._info), ("next_info", self._info)):
            self._columns[key] = self._over_time(values)

    def share(self, rank: int, num_ranks: int) -> None:
        """Hand out this rank's share of every minibatch from now on."""
        self._rank, self._num_ranks = rank, num_ranks

    def start_episodes(
        self, obs: ArrayTree, mask: np.ndarray, info: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Begin an episode in every environment where ``mask`` (E,) is true."""
        write(self._obs, obs, mask)
        write(self._info, info or {}, mask)

    def add(self, step: Step) -> None:
        """Store one step; the first after a whole rollout begins the next one.

        Raises:
            UserError: an array does not fit its space.

        """
        if self._time == self.horizon:
            self._time, self._is_taken, self._rows, self._batches = 0, False, None, []
        over = step.terminated | step.truncated
        values = {
            "obs": self._obs,
            "action": step.action,
            "reward": step.reward if step.active is None else step.reward * step.active,
            "discount": self.discount * ~step.terminated,
            "next_obs": step.next_obs,
            "over": over if step.active is None else over | ~step.active,
            "extras": step.extras,
            "info": self._info,
            "next_info": step.next_info,
        }
        write(self._columns, values, self._time)
        self._is_step[self._time] = True if step.active is None else step.active
        self._time += 1
        write(self._obs, step.next_obs, slice(None))
        write(self._info, step.next_info, slice(None))

    def end_open_episodes(self, mask: np.ndarray) -> None:
        """Truncate running episodes at their newest observations, where ``mask`` (E,) is true."""
        if self._time:
            self._columns["over"][self._time - 1] |= mask

    def take_rollout(self) -> Rollout | None:
        """The whole rollout, the first time after it is complete; else None."""
        if self._is_taken or self._time < self.horizon:
            return None
        self._is_taken = True
        rows = to_rows(self._columns)
        return Rollout(**rows, env=torch.arange(self.num_envs).repeat(self.horizon))

    def learn_from(self, rows: Any) -> None:
        """Draw minibatches of these rows (B, ...)."""
        self._rows, self._batches = rows, []

    def sample(self) -> Any:
        """The rows of the next minibatch, or this rank's share of it.

        Raises:
            UserError: no rollout is complete.

        """
        if self._rows is None:
            raise UserError("nothing to sample: the rollout is not complete")
        if not self._batches:
            steps = torch.from_numpy(np.flatnonzero(self._is_step))
            order = steps[torch.randperm(len(steps), generator=self._generator)]
            order = order.to(list_tensors(self._rows)[0].device)
            self._batches = list(order.tensor_split(self.minibatches))
        own = self._batches.pop(0).tensor_split(self._num_ranks)[self._rank]
        return map_tensors(lambda tensor: tensor[own], self._rows)

    def save(self, folder: Path) -> dict[str, Any]:
        """The steps of a rollout that is not complete; one that is was learned from."""
        time = self._time % self.horizon
        return {
            "time": time,
            "columns": [torch.from_numpy(array[:time].copy()) for array in self._arrays()],
            "current": [torch.from_numpy(array.copy()) for array in self._current()],
            "generator": self._generator.get_state(),
        }

    def load(self, state: dict[str, Any], folder: Path) -> None:
        """Continue exactly from where ``save`` was called.

        Raises:
            ValueError: the state is of another number of environments, or of longer rollouts.

        """
        time, columns = state["time"], state["columns"]
        fits = len(columns) == len(self._arrays()) and time < self.horizon
        for array, saved in zip(self._arrays(), columns, strict=False):
            fits &= array.shape[1:] == tuple(saved.shape[1:])
        if not fits:
            raise ValueError(
                f"the rollout was saved with other sizes than {self.horizon} steps of "
                f"{self.num_envs} environments"
            )
        for array, saved in zip(self._arrays(), columns, strict=True):
            array[:time] = saved.numpy()
        for array, saved in zip(self._current(), state["current"], strict=True):
            array[...] = saved.numpy()
        self._time, self._is_taken, self._rows, self._batches = time, False, None, []
        self._generator.set_state(state["generator"])

    def _over_time(self, arrays: Any) -> Any:
        """Arrays (T, E, ...) for arrays (E, ...), or a dict of such."""
        if isinstance(arrays, dict):
            return {key: self._over_time(array) for key, array in arrays.items()}
        return np.zeros((self.horizon, *arrays.shape), arrays.dtype)

    def _arrays(self) -> list[np.ndarray]:
        return [*list_arrays(self._columns), self._is_step]

    def _current(self) -> list[np.ndarray]:
        return [*list_arrays(self._obs), *list_arrays(self._info)]


def zeros(shapes: Mapping[str, tuple[int, ...]], num_envs: int) -> dict[str, np.ndarray]:
    """An array (E, ...) for each name."""
    return {name: np.zeros((num_envs, *shape), np.float32) for name, shape in shapes.items()}


def make_arrays(space: spaces.Space[Any], where: str, lead: tuple[int, ...]) -> Any:
    """Zeros for elements of a space, or a dict of such for a Dict space; ``lead`` counts them."""
    if isinstance(space, spaces.Dict):
        return {key: make_arrays(part, f"{where} '{key}'", lead) for key, part in space.items()}
    leaf: Leaf = leaf_of(space, where)
    return torch.zeros(*lead, *leaf.shape, dtype=leaf.dtype).numpy()


def list_arrays(arrays: Any) -> list[np.ndarray]:
    """All arrays of nested dicts."""
    if isinstance(arrays, dict):
        return [array for part in arrays.values() for array in list_arrays(part)]
    return [arrays]


def write(arrays: Any, values: Any, where: Any, name: str = "") -> None:
    """Set ``arrays[where]``, or those of nested dicts; by a mask, from where it is true.

    Raises:
        UserError: a value is missing, or of another shape.

    """
    if isinstance(arrays, dict):
        if not isinstance(values, Mapping) or arrays.keys() != values.keys():
            given = sorted(values) if isinstance(values, Mapping) else "one array"
            raise UserError(f"a step must bring {name} {sorted(arrays)}, got {given}")
        for key, array in arrays.items():
            write(array, values[key], where, f"{name}.{key}".strip("."))
        return
    values = np.asarray(values)
    place = arrays if isinstance(where, np.ndarray) else arrays[where]
    if values.shape != place.shape:
        raise UserError(
            f"the environments gave {name} of shape {values.shape}, but their spaces say "
            f"{place.shape}"
        )
    if isinstance(where, np.ndarray):
        arrays[where] = values[where]
    else:
        arrays[where] = values


def to_rows(arrays: Any) -> Any:
    """Tensors (T * E, ...) of arrays (T, E, ...), or nested dicts of such; copies."""
    if isinstance(arrays, dict):
        return {key: to_rows(part) for key, part in arrays.items()}
    return torch.from_numpy(arrays.reshape(-1, *arrays.shape[2:]).copy())
