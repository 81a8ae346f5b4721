"""EnvPool: environments in C++, stepped by threads; Weng et al., 2022, arXiv:2206.10558."""

import importlib
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from research.envs.gymnasium_env import is_of_call
from research.envs.native import standardise_vector
from research.errors import UserError, did_you_mean
from research.ranges import PositiveInt

NO_METRICS = ("env_id", "elapsed_step")
"""The infos that every pool has, and that say nothing of an episode."""


class EnvPool(VectorEnv):
    """A pool as a vector environment of gymnasium; ``reset`` with a seed makes the pool anew.

    A pool takes its seed when it is made, which takes about a millisecond.

    Args:
        make: gives a pool for a seed.

    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.make = make
        self.pool = make(0)
        self.num_envs = int(self.pool.config["num_envs"])
        self.single_observation_space = self.pool.observation_space  # a pool's are not of all
        self.single_action_space = self.pool.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode everywhere."""
        if seed is not None:
            self.pool.close()
            self.pool = self.make(seed)
        obs, infos = self.pool.reset()
        return obs, self.with_masks(infos)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all environments."""
        obs, reward, terminated, truncated, infos = self.pool.step(actions)
        return obs, reward, terminated, truncated, self.with_masks(infos)

    def with_masks(self, infos: Mapping[str, Any]) -> dict[str, Any]:
        """The infos (E, ...), each with the mask by which gymnasium says where it was reported."""
        everywhere = np.ones(self.num_envs, dtype=np.bool_)
        arrays = {name: values for name, values in infos.items() if name not in NO_METRICS}
        return {**arrays, **{f"_{name}": everywhere for name in arrays}}

    def close_extras(self, **kwargs: Any) -> None:
        """End the pool's threads."""
        self.pool.close()


def make_envpool(
    *,
    id: str,
    kwargs: Mapping[str, Any],
    num_envs: PositiveInt,
    max_episode_steps: PositiveInt | None,
    flatten_obs: bool,
) -> VectorEnv:
    """A pool of ``num_envs`` environments, Box actions scaled to [-1, 1].

    An episode is truncated after ``max_episode_steps`` steps; None for the registered number.

    Raises:
        ValueError: EnvPool has no such environment, or it does not take these arguments.
        UserError: EnvPool is not installed.

    """
    limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
    make = partial(make_pool, id, {"num_envs": num_envs, **limit, **kwargs})
    return standardise_vector(EnvPool(make), id, flatten_obs=flatten_obs)


def make_pool(id: str, kwargs: Mapping[str, Any], seed: int) -> Any:
    """``envpool.make`` with errors of one line."""
    try:
        envpool: Any = importlib.import_module("envpool")
    except ImportError as error:
        raise UserError(
            f"env=envpool needs EnvPool: pip install -e '.[envpool]' ({error})"
        ) from error
    if id not in (known := envpool.list_all_envs()):
        raise ValueError(f"EnvPool has no environment '{id}'{did_you_mean(id, known)}")
    try:
        pool = envpool.make(id, env_type="gymnasium", seed=seed, **kwargs)
    except TypeError as error:
        if not is_of_call(error, kwargs):
            raise
        raise ValueError(f"kwargs must suit '{id}': {error}") from error
    with warnings.catch_warnings():  # of bounds that float32 rounds, at the first look
        warnings.simplefilter("ignore")
        _ = pool.observation_space, pool.action_space
    return pool
