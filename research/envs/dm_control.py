"""The DeepMind Control Suite: Tassa et al., 2018, https://arxiv.org/abs/1801.00690."""

from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from research.envs.rendering import import_suite
from research.envs.vector import Vector, vectorize
from research.errors import did_you_mean

UNBOUNDED = 1e10
"""The size of a bound from which on MuJoCo means that there is none (mjMAXVAL)."""


class DMControl(gymnasium.Env[Any, np.ndarray]):
    """One task of the suite as a gymnasium environment.

    | space | what |
    | --- | --- |
    | observation | float32 (O,): the suite's arrays in its order, a scalar as one entry |
    | observation, if not ``flatten_obs`` | a Dict of those arrays in float32, a scalar as (1,) |
    | action | float32, the suite's box |

    An episode's last step is ``terminated`` if its discount is 0, otherwise ``truncated``.
    ``render`` returns (H, W, 3) bytes and loads a rendering library at its first call.

    Raises:
        ValueError: there is no such domain, task or camera.

    """

    action_space: spaces.Box

    def __init__(
        self,
        *,
        domain: str,
        task: str,
        flatten_obs: bool,
        height: int,
        width: int,
        camera_id: int,
    ) -> None:
        self.dm_env = load(domain, task)
        self.flatten_obs = flatten_obs
        self.height, self.width, self.camera_id = height, width, camera_id
        model = self.dm_env.physics.model
        if not -1 <= camera_id < model.ncam:
            raise ValueError(f"camera_id must be from -1 to {model.ncam - 1}, got {camera_id}")
        model.vis.global_.offheight = max(height, model.vis.global_.offheight)
        model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
        fps = round(1 / self.dm_env.control_timestep())
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        self.render_mode = "rgb_array"
        self.action_space = make_action_space(self.dm_env.action_spec())
        self.observation_space = make_observation_space(
            self.dm_env.observation_spec(), flatten_obs=flatten_obs
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; ``seed`` (below 2**32) fixes it whatever happened before."""
        super().reset(seed=seed)
        if seed is not None:
            self.dm_env.task.random.seed(seed)
        return self.convert_obs(self.dm_env.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Simulate one control step."""
        step = self.dm_env.step(action)
        assert not step.first(), "the episode was over; dm_control has begun another by itself"
        terminated = step.last() and step.discount == 0
        truncated = step.last() and not terminated
        return self.convert_obs(step.observation), float(step.reward), terminated, truncated, {}

    def render(self) -> np.ndarray:
        """(H, W, 3) bytes.

        Raises:
            UserError: no rendering library works here.

        """
        return self.dm_env.physics.render(
            height=self.height, width=self.width, camera_id=self.camera_id
        )

    def close(self) -> None:
        """Free the simulation and its rendering context."""
        self.dm_env.close()

    def convert_obs(self, obs: dict[str, np.ndarray]) -> np.ndarray | dict[str, np.ndarray]:
        """The suite's observation as an element of the observation space."""
        if self.flatten_obs:
            arrays = [np.ravel(array) for array in obs.values()]
            return np.concatenate(arrays, dtype=np.float32, casting="same_kind")
        return {name: np.atleast_1d(array).astype(np.float32) for name, array in obs.items()}


def load(domain: str, task: str) -> Any:
    """The suite's own environment, its generator seeded from the operating system."""
    suite = import_suite()
    tasks = suite.TASKS_BY_DOMAIN
    require_choice("domain", domain, tasks)
    require_choice(f"task of {domain}", task, tasks[domain])
    # lqr draws its model when it is made; the copies in a vector must be one and the same.
    env = suite.load(domain, task, task_kwargs={"random": 0})
    env.task.random.seed(None)
    return env


def require_choice(what: str, name: str, choices: Iterable[str]) -> None:
    """Refuse a ``name`` that is none of the choices, naming the nearest and all of them."""
    choices = list(choices)
    if name not in choices:
        guess = did_you_mean(name, choices)
        raise ValueError(f"no {what} is called '{name}'; allowed: {', '.join(choices)}{guess}")


def make_action_space(spec: Any) -> spaces.Box:
    """The box of a dm_env specification, with infinite bounds where MuJoCo has none."""
    low = np.where(spec.minimum <= -UNBOUNDED, -np.inf, spec.minimum)
    high = np.where(spec.maximum >= UNBOUNDED, np.inf, spec.maximum)
    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def make_observation_space(specs: dict[str, Any], *, flatten_obs: bool) -> spaces.Space:
    """One unbounded box for all of the suite's arrays, or a Dict with one for each."""
    if flatten_obs:
        size = sum(int(np.prod(spec.shape)) for spec in specs.values())
        return spaces.Box(-np.inf, np.inf, (size,), np.float32)
    boxes = (spaces.Box(-np.inf, np.inf, spec.shape or (1,), np.float32) for spec in specs.values())
    # A plain dict would be sorted; the suite's order is that of the flat observation.
    return spaces.Dict(OrderedDict(zip(specs, boxes, strict=True)))


def make_dm_control(
    *,
    domain: str,
    task: str,
    num_envs: int,
    subprocesses: bool,
    action_repeat: int,
    flatten_obs: bool,
    height: int,
    width: int,
    camera_id: int,
) -> Vector:
    """``num_envs`` copies of a task, with actions in [-1, 1] and float32 observations."""
    make_env = partial(
        DMControl,
        domain=domain,
        task=task,
        flatten_obs=flatten_obs,
        height=height,
        width=width,
        camera_id=camera_id,
    )
    return vectorize(
        make_env,
        num_envs=num_envs,
        subprocesses=subprocesses,
        action_repeat=action_repeat,
        flatten_obs=flatten_obs,
    )
