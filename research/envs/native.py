"""Vector environments of a class of their own, which steps all copies at once and resets them."""

from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from gymnasium.wrappers.vector import TransformAction

from research.envs.checked import find_difference, name_types
from research.envs.wrappers import cast_to, float32_space, scale_to, unit_box
from research.errors import UserError

OWN_RESETS = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)


def standardise_vector(env: VectorEnv, name: str, *, flatten_obs: bool) -> VectorEnv:
    """``env``, checked, with Box actions in [-1, 1] and float32 observations.

    Images stay uint8. ``flatten_obs`` turns observations that are not arrays into vectors, discrete
    ones into one-hot vectors. ``metadata["own_spaces"]`` holds the spaces of one environment's
    observations and actions as they were.

    Raises:
        ValueError: an action has no finite bound, or the environments do not reset themselves.

    """
    mode = env.metadata.get("autoreset_mode")
    if mode not in OWN_RESETS:
        raise ValueError(
            f"'{name}' must reset itself, and say so in metadata['autoreset_mode'], got {mode}"
        )
    box = env.single_action_space
    own_spaces = env.single_observation_space, box
    if isinstance(box, spaces.Box) and box != (unit := unit_box(box)):
        unit_boxes = batch_space(unit, env.num_envs)
        env = TransformAction(env, partial(scale_to, box), unit_boxes, unit)
    env = Native(env, name, flatten_obs=flatten_obs)
    known = {"action_repeat": 1, "frame_stack": 1, "is_resumable": False}
    env.metadata = {**env.metadata, **known, "own_spaces": own_spaces}
    return env


class Native(VectorWrapper):
    """Refuses in one line a result that violates gymnasium's API; all arrays become NumPy's.

    Unlike gymnasium's wrappers of observations it does not loop over the environments, and takes
    those that reset in the step that ends an episode. Their ``infos["final_obs"]`` become
    observations (E, ...) of all, zeros where no episode ended.
    """

    def __init__(self, env: VectorEnv, name: str, *, flatten_obs: bool) -> None:
        super().__init__(env)
        self.name = name
        self.declared = env.single_observation_space
        self.flattens = flatten_obs and not isinstance(self.declared, spaces.Box)
        space = spaces.flatten_space(self.declared) if self.flattens else self.declared
        self.single_observation_space = float32_space(space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.resets_in_step = env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode everywhere."""
        obs, infos = self.env.reset(seed=seed, options=options)
        return self.convert_obs(obs), infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all environments."""
        result = self.env.step(actions)
        if not isinstance(result, tuple) or len(result) != 5 or not isinstance(result[4], dict):
            raise UserError(
                f"{self.name}: step must return (obs, reward, terminated, truncated, infos), got "
                f"{name_types(result)}"
            )
        obs, reward, terminated, truncated, infos = result
        reward = self.to_vector("reward", reward, np.float64)
        terminated = self.to_vector("terminated", terminated, np.bool_)
        truncated = self.to_vector("truncated", truncated, np.bool_)
        if self.resets_in_step and (over := terminated | truncated).any():
            infos = {**infos, "final_obs": self.convert_final(infos.get("final_obs"), over)}
        return self.convert_obs(obs), reward, terminated, truncated, infos

    def to_vector(self, name: str, values: Any, dtype: type) -> np.ndarray:
        """The values as an array (E,)."""
        try:
            return np.asarray(values, dtype).reshape(self.num_envs)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{self.name}: {name} must be {self.num_envs} numbers, one for each environment, "
                f"got an array of shape {np.shape(values)}"
            ) from error

    def convert_obs(self, obs: Any) -> Any:
        """Observations (E, ...) in the form of the observation space."""
        if difference := find_difference(self.env.observation_space, obs):
            raise UserError(f"{self.name}: {difference}")
        return self.cast(obs)

    def convert_final(self, final: Any, over: np.ndarray) -> Any:
        """The final observations of the episodes that are ``over`` (E,), as an array (E, ...)."""
        if final is None:
            raise UserError(
                f"{self.name}: an environment that resets in the step that ends an episode must "
                "return infos['final_obs']"
            )
        if not (isinstance(final, np.ndarray) and final.dtype == object):
            return self.convert_obs(final)
        count = np.count_nonzero(over)
        out = create_empty_array(self.declared, count)
        rows = self.cast(concatenate(self.declared, tuple(final[over]), out))
        return spread(rows, over)

    def cast(self, obs: Any) -> Any:
        """Observations (N, ...), flattened if they are to be, in float32 unless they are images."""
        if self.flattens:
            obs = np.concatenate(flat_parts(self.declared, obs), axis=1)
        return cast_to(self.single_observation_space, obs)


def flat_parts(space: gymnasium.Space, obs: Any) -> list[np.ndarray]:
    """The arrays (N, ...) that gymnasium's ``flatten`` would join, for N observations at once."""
    if isinstance(space, spaces.Dict):
        return [part for key in space for part in flat_parts(space[key], obs[key])]
    if isinstance(space, spaces.Tuple):
        pairs = zip(space.spaces, obs, strict=True)
        return [part for pair in pairs for part in flat_parts(*pair)]
    array = np.asarray(obs)
    if isinstance(space, spaces.Discrete):
        return [np.eye(int(space.n))[array - space.start]]
    if isinstance(space, spaces.MultiDiscrete):
        columns = zip(
            space.nvec.ravel(), (array - space.start).reshape(len(array), -1).T, strict=True
        )
        return [np.eye(count)[column] for count, column in columns]
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return [array.reshape(len(array), -1)]
    raise UserError(f"observations of {space} cannot be flattened; try env.flatten_obs=false")


def spread(rows: Any, mask: np.ndarray) -> Any:
    """The rows (N, ...), or a dict of such, where ``mask`` (E,) is true, and zeros elsewhere."""
    if isinstance(rows, dict):
        return {key: spread(part, mask) for key, part in rows.items()}
    spread_out = np.zeros((len(mask), *rows.shape[1:]), rows.dtype)
    spread_out[mask] = rows
    return spread_out
