"""The DeepMind Control Suite: Tassa et al., 2018, https://arxiv.org/abs/1801.00690."""

import importlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from research.envs.pixels import Pixels, PixelSize
from research.envs.rendering import find_renderer, import_suite
from research.envs.vector import Vector, vectorize
from research.errors import UserError, did_you_mean
from research.ranges import PositiveInt

UNBOUNDED = 1e10
"""MuJoCo treats a bound of this size or larger as no bound (mjMAXVAL)."""


class DMControl(gymnasium.Env[Any, np.ndarray]):
    """One task of the suite as a gymnasium environment.

    | space | what |
    | --- | --- |
    | observation | float32 (O,): the suite's arrays in its order, a scalar as one entry |
    | observation, if not ``flatten_obs`` | a Dict of those arrays in float32, a scalar as (1,) |
    | action | float32, the suite's box |

    An episode's last step is ``terminated`` if its discount is 0, otherwise ``truncated``.
    ``render`` returns uint8 (H, W, 3) and loads a rendering library at its first call.

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
        self.cameras: dict[tuple[int, int], Any] = {}
        model = self.dm_env.physics.model
        if not -1 <= camera_id < model.ncam:
            raise ValueError(f"camera_id must be from -1 to {model.ncam - 1}, got {camera_id}")
        model.vis.global_.offheight = max(height, model.vis.global_.offheight)
        model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
        fps = 1 / self.dm_env.control_timestep()
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        self.render_mode = "rgb_array"
        self.action_space = make_action_space(self.dm_env.action_spec())
        self.observation_space = make_observation_space(
            self.dm_env.observation_spec(), flatten_obs=flatten_obs
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; with ``seed`` (below 2**32) it does not depend on earlier ones."""
        super().reset(seed=seed)
        if seed is not None:
            self.dm_env.task.random.seed(seed)
        return self.convert_obs(self.dm_env.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Simulate one control step."""
        step = self.dm_env.step(action)
        if step.first():
            raise UserError("step() was called when the episode was over; call reset() first")
        terminated = step.last() and step.discount == 0
        truncated = step.last() and not terminated
        return self.convert_obs(step.observation), float(step.reward), terminated, truncated, {}

    def compute_obs(self) -> Any:
        """The observation of the last reset or step, computed again."""
        return self.convert_obs(self.dm_env.task.get_observation(self.dm_env.physics))

    def state_dict(self) -> dict[str, Any]:
        """All that steps have changed since the reset, as numbers, strings, None and arrays."""
        env = self.dm_env
        _, key, position, has_gauss, gauss = env.task.random.get_state()
        return {
            "physics": env.physics.get_state(sig=integration_state()),
            "sensors": env.physics.data.sensordata.copy(),
            "random": {
                "key": key.astype(np.int64),
                "position": position,
                "has_gauss": has_gauss,
                "gauss": gauss,
            },
            "task": plain_attributes(env.task),
            "step_count": env._step_count,
            "is_over": env._reset_next_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``; call this after a reset with the seed of the same episode.

        Raises:
            ValueError: ``state`` is not one of this task; then nothing has changed.

        """
        if not (has_form(state, self.state_dict()) and is_in_range(state)):
            raise ValueError("this is not the state of an episode of the same task")
        env, random = self.dm_env, state["random"]
        env.physics.set_state(state["physics"], sig=integration_state())
        # dm_control ends its steps with this, too.
        import_mujoco().mj_step1(env.physics.model.ptr, env.physics.data.ptr)
        # Some sensors are older than the rest: they show the forces of the last step.
        env.physics.data.sensordata[:] = state["sensors"]
        generator = (random["key"], random["position"], random["has_gauss"], random["gauss"])
        env.task.random.set_state(("MT19937", *generator))
        for name, value in state["task"].items():
            before = getattr(env.task, name)
            if isinstance(before, np.ndarray):
                before[...] = value  # the task may share it with the physics
            elif before is not None:
                setattr(env.task, name, type(before)(value))
        env._step_count, env._reset_next_step = state["step_count"], state["is_over"]

    def render(self) -> np.ndarray:
        """The current frame, uint8 (H, W, 3).

        Raises:
            UserError: no rendering library works here.

        """
        return self.render_frame(self.height, self.width)

    def render_frame(self, height: int, width: int) -> np.ndarray:
        """The frame that ``render`` returns, in another size."""
        camera = self.cameras.get((height, width))
        if camera is None:
            # physics.render makes one for each frame, which takes a seventh of its time.
            engine = importlib.import_module("dm_control.mujoco.engine")
            camera = engine.Camera(self.dm_env.physics, height, width, self.camera_id)
            self.cameras[height, width] = camera
        return camera.render().copy()  # it fills the same array the next time

    def close(self) -> None:
        """Free the simulation and its rendering context."""
        self.cameras.clear()
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
    # lqr draws its model when it is made; the copies in a vector must have the same one.
    env = suite.load(domain, task, task_kwargs={"random": 0})
    env.task.random.seed(None)
    return env


def import_mujoco() -> Any:
    """MuJoCo as dm_control has imported it; on its own it would refuse an unknown MUJOCO_GL."""
    return importlib.import_module("mujoco")


def integration_state() -> int:
    """MuJoCo's flag for the whole state that its next step depends on."""
    return import_mujoco().mjtState.mjSTATE_INTEGRATION.value


def plain_attributes(task: Any) -> dict[str, Any]:
    """The attributes of a task that are numbers, strings, None or arrays of numbers."""
    plain = {}
    for name, value in vars(task).items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "bif":
            plain[name] = value.copy()
        elif isinstance(value, float):
            plain[name] = float(value)  # NumPy's own is one, too
        elif value is None or isinstance(value, (bool, int, str)):
            plain[name] = value
    return plain


def has_form(value: Any, like: Any) -> bool:
    """Whether ``value`` has the types, names, dtypes and shapes of ``like``."""
    if type(value) is not type(like):
        return False
    if isinstance(like, dict):
        return value.keys() == like.keys() and all(has_form(value[k], like[k]) for k in like)
    return not isinstance(like, np.ndarray) or (
        value.dtype == like.dtype and value.shape == like.shape
    )


def is_in_range(state: dict[str, Any]) -> bool:
    """Whether those values of a state are valid that MuJoCo and NumPy do not check themselves."""
    random = state["random"]
    key = random["key"]
    return bool(
        np.isfinite(state["physics"]).all()
        and np.isfinite(state["sensors"]).all()
        and ((key >= 0) & (key < 2**32)).all()
        and 0 <= random["position"] <= key.size
        and random["has_gauss"] in (0, 1)
        and state["step_count"] >= 0
    )


def require_choice(what: str, name: str, choices: Iterable[str]) -> None:
    """Refuse a ``name`` that is not one of the choices; the message lists them and the nearest."""
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


def make_limited(make_env: Callable[[], DMControl], max_episode_steps: int) -> DMControl:
    """An environment whose episodes have this length instead of the suite's."""
    env = make_env()
    env.dm_env._step_limit = max_episode_steps
    return env


def make_dm_control(
    *,
    domain: str,
    task: str,
    num_envs: PositiveInt,
    subprocesses: bool,
    action_repeat: PositiveInt,
    max_episode_steps: PositiveInt | None,
    flatten_obs: bool,
    height: PositiveInt,
    width: PositiveInt,
    camera_id: int,
    pixels: bool,
    pixel_size: PixelSize,
    frame_stack: PositiveInt,
) -> Vector:
    """``num_envs`` copies of a task, with actions in [-1, 1] and float32 observations.

    An episode is truncated after ``max_episode_steps`` frames; None for the suite's number.

    With ``pixels``, observations are those of ``Pixels``, and ``flatten_obs``, ``height`` and
    ``width`` do not affect them. Without, ``pixel_size`` and ``frame_stack`` are ignored.

    Raises:
        ValueError: an argument is wrong; see ``DMControl``, ``Pixels`` and ``vectorize``.
        UserError: ``pixels`` is true, and no rendering library works here.

    """
    if pixels:
        find_renderer()  # here it is one line; from a subprocess it would be a traceback
    make_env: Callable[[], DMControl] = partial(
        DMControl,
        domain=domain,
        task=task,
        flatten_obs=flatten_obs,
        height=height,
        width=width,
        camera_id=camera_id,
    )
    if max_episode_steps is not None:
        make_env = partial(make_limited, make_env, max_episode_steps)
    return vectorize(
        make_env,
        num_envs=num_envs,
        subprocesses=subprocesses,
        action_repeat=action_repeat,
        flatten_obs=flatten_obs,
        wrap=partial(Pixels, pixel_size=pixel_size, frame_stack=frame_stack) if pixels else None,
    )
