"""DMControl: the suite's own numbers, one seed per episode, ends told apart, clear refusals."""

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from research.envs.dm_control import DMControl, make_dm_control
from research.envs.rendering import find_renderer, import_suite, try_library
from research.envs.vector import Vector
from research.errors import UserError

FRAME = {"height": 20, "width": 30, "camera_id": 0}
IMAGE = {"pixel_size": 16, "frame_stack": 3}


def make(domain: str, task: str, *, flatten_obs: bool = True) -> DMControl:
    return DMControl(domain=domain, task=task, flatten_obs=flatten_obs, **FRAME)


def make_vector(
    domain: str, task: str, *, action_repeat: int = 1, max_episode_steps: int | None = None
) -> Vector:
    return make_dm_control(
        domain=domain,
        task=task,
        num_envs=1,
        subprocesses=False,
        action_repeat=action_repeat,
        max_episode_steps=max_episode_steps,
        flatten_obs=True,
        pixels=False,
        **IMAGE,
        **FRAME,
    )


def flat(observation: Mapping[str, Any]) -> np.ndarray:
    """The suite's observation as one vector, written down independently of DMControl."""
    values = [value for array in observation.values() for value in np.atleast_1d(array).flat]
    return np.array(values).astype(np.float32)


def can_render() -> bool:
    try:
        return bool(find_renderer())
    except UserError:
        return False


@pytest.mark.parametrize(
    ("domain", "task"), [("walker", "walk"), ("finger", "turn_easy"), ("manipulator", "bring_ball")]
)
def test_steps_are_those_of_the_suite(domain: str, task: str) -> None:
    reference = import_suite().load(domain, task, task_kwargs={"random": 7})
    env, rng = make(domain, task), np.random.default_rng(0)
    expected = [flat(reference.reset().observation)]
    obs = [env.reset(seed=7)[0]]
    for _ in range(20):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        time_step = reference.step(action)
        next_obs, reward, *_ = env.step(action)
        assert reward == time_step.reward
        expected.append(flat(time_step.observation))
        obs.append(next_obs)
    np.testing.assert_array_equal(obs, expected)
    assert all(o.dtype == np.float32 and env.observation_space.contains(o) for o in obs)


def test_dict_observations_are_the_arrays_of_the_suite() -> None:
    reference = import_suite().load("walker", "walk", task_kwargs={"random": 7})
    expected = reference.reset().observation
    env = make("walker", "walk", flatten_obs=False)
    obs, _ = env.reset(seed=7)
    assert isinstance(env.observation_space, gymnasium.spaces.Dict)
    assert env.observation_space.contains(obs)
    assert list(obs) == list(env.observation_space) == list(expected)
    assert obs["height"].shape == (1,)
    for name, array in obs.items():
        np.testing.assert_array_equal(array, np.float32(np.atleast_1d(expected[name])))


def play(env: DMControl, seed: int | None) -> np.ndarray:
    obs = [env.reset(seed=seed)[0]]
    obs += [env.step(np.full(env.action_space.shape, 0.5, np.float32))[0] for _ in range(5)]
    return np.array(obs)


@pytest.mark.parametrize(("domain", "task"), [("finger", "turn_hard"), ("quadruped", "fetch")])
def test_a_seed_fixes_an_episode_whatever_happened_before(domain: str, task: str) -> None:
    used, fresh = make(domain, task), make(domain, task)
    for seed in (1, None, 2):
        play(used, seed)
    np.testing.assert_array_equal(play(used, 5), play(fresh, 5))


def test_without_a_seed_episodes_go_on_with_the_generator() -> None:
    reference = import_suite().load("reacher", "easy", task_kwargs={"random": 7})
    env = make("reacher", "easy")
    for seed in (7, None, None):
        expected = flat(reference.reset().observation)
        np.testing.assert_array_equal(env.reset(seed=seed)[0], expected)


@pytest.mark.parametrize("seeds", [(None, None), (0, 1)])
def test_other_seeds_and_none_give_other_episodes(seeds: tuple[int | None, int | None]) -> None:
    first, second = (make("reacher", "easy").reset(seed=seed)[0] for seed in seeds)
    assert not np.array_equal(first, second)


def test_actions_cover_the_box_of_the_suite() -> None:
    spec = import_suite().load("quadruped", "walk").action_spec()
    low, high = spec.minimum, spec.maximum
    assert not np.all(high == 1)
    box = make("quadruped", "walk").action_space
    np.testing.assert_array_equal([box.low, box.high], np.array([low, high], np.float32))
    env = make_vector("quadruped", "walk")
    assert env.single_action_space == gymnasium.spaces.Box(-1, 1, (12,), np.float32)
    env.reset(seed=[0])
    for action, expected in ((-1, low), (1, high), (0, (low + high) / 2)):
        env.step(np.full((1, 12), action, np.float32))
        ctrl = env.envs[0].unwrapped.dm_env.physics.data.ctrl  # type: ignore[attr-defined]
        np.testing.assert_allclose(ctrl, expected, rtol=1e-6)


def test_unbounded_actions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"finite bounds, got Box\(-inf, inf, \(1,\), float32\)"):
        make_vector("lqr", "lqr_2_1")


def test_copies_of_a_task_drawn_at_random_are_the_same_task() -> None:
    first, second = (make("lqr", "lqr_6_2").dm_env.physics.model for _ in range(2))
    np.testing.assert_array_equal(first.jnt_stiffness, second.jnt_stiffness)


def test_an_end_with_discount_zero_is_a_termination() -> None:
    env = make("lqr", "lqr_2_1")
    env.reset(seed=0)
    assert env.step(np.zeros(1, np.float32))[2:4] == (False, False)
    with env.dm_env.physics.reset_context():
        pass  # at rest in the origin, where the task ends
    assert env.step(np.zeros(1, np.float32))[2:4] == (True, False)


@pytest.mark.parametrize(("action_repeat", "steps"), [(1, 1000), (7, 143)])
def test_the_time_limit_is_a_truncation(action_repeat: int, steps: int) -> None:
    env = make_vector("pendulum", "swingup", action_repeat=action_repeat)
    env.reset(seed=[0])
    ends = [env.step(np.zeros((1, 1), np.float32))[2:4] for _ in range(steps)]
    assert not np.any(ends[:-1])
    assert ends[-1] == (np.array([False]), np.array([True]))


def test_stepping_past_the_end_is_a_mistake() -> None:
    env = make("pendulum", "swingup")
    with pytest.raises(UserError, match="the episode was over"):
        env.step(np.zeros(1, np.float32))


@pytest.mark.parametrize(
    ("domain", "task", "message"),
    [
        ("cheeta", "run", r"no domain is called 'cheeta'; .* walker; did you mean 'cheetah'\?$"),
        ("walker", "wlk", r"allowed: stand, walk, run; did you mean 'walk'\?$"),
    ],
)
def test_a_wrong_name_is_refused_with_the_choices(domain: str, task: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(domain, task)


def test_a_camera_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="camera_id must be from -1 to 1, got 2"):
        DMControl(domain="cheetah", task="run", flatten_obs=True, height=9, width=9, camera_id=2)


@pytest.mark.skipif(not can_render(), reason="no rendering library works here")
def test_frames_have_the_size_and_the_camera_asked_for() -> None:
    frames = []
    for camera_id in (0, 1):
        env = DMControl(
            domain="cheetah",
            task="run",
            flatten_obs=True,
            height=500,  # above MuJoCo's default buffer
            width=30,
            camera_id=camera_id,
        )
        env.reset(seed=0)
        frames.append(env.render())
        env.close()
    assert all(frame.shape == (500, 30, 3) and frame.dtype == np.uint8 for frame in frames)
    assert frames[0].std() > 1
    assert not np.array_equal(*frames)


@pytest.mark.skipif(not can_render(), reason="no rendering library works here")
def test_frames_of_every_size_are_those_of_the_suite_at_every_step() -> None:
    reference = import_suite().load("quadruped", "walk", task_kwargs={"random": 7})
    reference.reset()
    env = make("quadruped", "walk")
    env.reset(seed=7)
    frames, expected = [], []
    for height, width in ((20, 30), (16, 16), (20, 30), (16, 16)):
        frames.append(env.render_frame(height, width))
        expected.append(reference.physics.render(height, width, 0))
        action = np.full(12, 0.5, np.float32)
        env.step(action)
        reference.step(action)
    for frame, same in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(frame, same)
    env.close()


def run_python(code: str, mujoco_gl: str) -> str:
    environment = {**os.environ, "MUJOCO_GL": mujoco_gl}
    program = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return program.stdout


def play_at_random(env: DMControl, num_steps: int, seed: int) -> list[Any]:
    """Every bit of the steps' observations, and their rewards and ends."""
    rng, shape = np.random.default_rng(seed), env.action_space.shape
    steps = [env.step(rng.uniform(-1, 1, shape).astype(np.float32)) for _ in range(num_steps)]
    return [(obs.tobytes(), *rest) for obs, *rest in steps]


def test_every_task_goes_on_in_mid_episode_in_another_environment() -> None:
    rng = np.random.default_rng(0)
    for domain, task in import_suite().ALL_TASKS:
        if task == "escape" and not can_render():
            continue  # it renders at every reset
        env, other = make(domain, task), make(domain, task)
        env.reset(seed=3)
        play_at_random(env, int(rng.integers(40)), seed=0)
        other.reset(seed=3)
        other.load_state_dict(copy.deepcopy(env.state_dict()))
        assert env.compute_obs().tobytes() == other.compute_obs().tobytes(), task
        assert play_at_random(env, 30, seed=1) == play_at_random(other, 30, seed=1), task
        assert env.reset()[0].tobytes() == other.reset()[0].tobytes(), task


def test_the_last_step_comes_when_it_would_have_come() -> None:
    env, other = make("cheetah", "run"), make("cheetah", "run")
    for each in (env, other):
        each.reset(seed=0)
    play_at_random(env, 997, seed=0)
    other.load_state_dict(env.state_dict())
    assert [truncated for *_, truncated, _ in play_at_random(other, 3, seed=1)] == [False, False, 1]
    env.load_state_dict(other.state_dict())
    with pytest.raises(UserError, match="the episode was over"):
        play_at_random(env, 1, seed=2)


def test_what_a_task_draws_goes_on() -> None:
    env, other = make("cheetah", "run"), make("cheetah", "run")
    for each in (env, other):
        each.reset(seed=0)
    draw, draw_other = env.dm_env.task.random.normal, other.dm_env.task.random.normal
    draw()  # of two numbers: the generator keeps the second one
    other.load_state_dict(env.state_dict())
    assert [draw() for _ in range(1000)] == [draw_other() for _ in range(1000)]


def test_what_a_task_counts_goes_on() -> None:
    env, other = make("dog", "run"), make("dog", "run")
    values = {"count": 7, "mean": np.float64(0.5), "trace": np.arange(3.0), "name": "a", "no": None}
    for each, start in ((env, values), (other, {**values, "count": 0, "trace": np.zeros(3)})):
        each.reset(seed=0)
        vars(each.dm_env.task).update(start)
    other.dm_env.task.mean = np.float64(0)
    trace = other.dm_env.task.trace
    other.load_state_dict(env.state_dict())
    task = other.dm_env.task
    assert (task.count, task.mean, task.name, task.no) == (7, 0.5, "a", None)
    assert type(task.mean) is np.float64
    assert task.trace is trace
    np.testing.assert_array_equal(trace, np.arange(3.0))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("physics", np.zeros(3)),
        ("physics", np.full(91, np.nan)),
        ("physics", np.zeros(91, np.float32)),
        ("physics", [0.0] * 91),
        ("sensors", np.zeros(4)),
        ("sensors", np.full(3, np.inf)),
        ("random", None),
        ("random.key", np.zeros(600, np.int64)),
        ("random.key", np.full(624, 2**32)),
        ("random.key", np.full(624, -1)),
        ("random.position", 625),
        ("random.position", -1),
        ("random.has_gauss", 2),
        ("random.gauss", "0"),
        ("task._timeout_progress", 0.5),
        ("task._random", 0),
        ("task.get_reward", None),
        ("step_count", True),
        ("step_count", -1),
        ("is_over", 1),
        ("other", 1),
    ],
)
def test_a_state_that_is_none_of_the_task_is_refused_and_changes_nothing(
    path: str, value: Any
) -> None:
    env, other = make("cheetah", "run"), make("cheetah", "run")
    for each in (env, other):
        each.reset(seed=0)
        play_at_random(each, 5, seed=0)
    other.reset(seed=0)
    state: Any = other.state_dict()
    *parents, name = path.split(".")
    functools.reduce(dict.__getitem__, parents, state)[name] = value
    with pytest.raises(ValueError, match="not the state of an episode"):
        env.load_state_dict(state)
    other.reset(seed=0)
    play_at_random(other, 5, seed=0)
    assert play_at_random(env, 5, seed=1) == play_at_random(other, 5, seed=1)
    assert env.reset()[0].tobytes() == other.reset()[0].tobytes()


@pytest.mark.parametrize("state", [None, [], {}, {"physics": np.zeros(91)}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match="not the state of an episode"):
        make("cheetah", "run").load_state_dict(state)


def test_training_needs_no_rendering_library_and_a_frame_says_which_package_is_missing() -> None:
    out = run_python(
        "import os, sys\n"
        "from research.envs.dm_control import DMControl\n"
        "from research.errors import UserError\n"
        "size = dict(height=9, width=9, camera_id=0)\n"
        "env = DMControl(domain='pendulum', task='swingup', flatten_obs=True, **size)\n"
        "env.reset(seed=0)\n"
        "print({'torch', 'OpenGL', 'glfw'} & set(sys.modules), os.environ['MUJOCO_GL'])\n"
        "for library in ('none_such', 'disabled', 'disabled'):\n"
        "    os.environ['MUJOCO_GL'] = library\n"
        "    try:\n"
        "        env.render()\n"
        "    except UserError as error:\n"
        "        print(error)\n",
        mujoco_gl="none_such",
    )
    modules, *errors = out.splitlines()
    assert modules == "set() none_such"
    for library, error in zip(("none_such", "disabled", "disabled"), errors, strict=True):
        assert all(word in error for word in (library, "libegl1", "libosmesa6"))


@pytest.fixture
def no_cache() -> Iterator[None]:
    try_library.cache_clear()
    yield
    try_library.cache_clear()


@pytest.mark.usefixtures("no_cache")
def test_a_machine_where_no_library_works_is_told_why_and_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYOPENGL_PLATFORM", "glx")
    monkeypatch.setenv("MUJOCO_GL", "")
    with pytest.raises(
        UserError, match=r"egl \(.*\) or osmesa \(.*'glx'.*\); .*libosmesa6"
    ) as error:
        find_renderer()
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("no_cache")
def test_pixels_that_cannot_be_rendered_are_refused_before_the_first_process_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    arguments = {
        "domain": "cheetah",
        "task": "run",
        "num_envs": 2,
        "action_repeat": 1,
        "max_episode_steps": None,
        **FRAME,
        **IMAGE,
    }
    with pytest.raises(UserError, match=r"cannot render by egl \("):
        make_dm_control(**arguments, subprocesses=True, flatten_obs=True, pixels=True)


@pytest.mark.parametrize(
    ("mujoco_gl", "working", "choice"),
    [
        ("", {"egl", "osmesa"}, "egl"),
        ("", {"osmesa"}, "osmesa"),
        ("osmesa", {"egl", "osmesa"}, "osmesa"),
        ("glfw", {"egl", "osmesa"}, "glfw"),
    ],
)
def test_the_library_is_the_users_or_else_the_first_that_may_use_a_gpu(
    monkeypatch: pytest.MonkeyPatch, mujoco_gl: str, working: set[str], choice: str
) -> None:
    monkeypatch.setenv("MUJOCO_GL", mujoco_gl)
    monkeypatch.setattr(
        "research.envs.rendering.try_library", lambda name: None if name in working else "no"
    )
    monkeypatch.setattr("sys.platform", "linux")
    assert find_renderer() == choice


@pytest.mark.skipif(try_library("osmesa") is not None, reason="OSMesa does not work here")
def test_without_a_driver_for_egl_frames_come_from_osmesa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", os.devnull)
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)  # set by what rendered in this process
    out = run_python(
        "from research.envs.dm_control import DMControl\n"
        "size = dict(height=9, width=9, camera_id=0)\n"
        "env = DMControl(domain='pendulum', task='swingup', flatten_obs=True, **size)\n"
        "env.reset(seed=0)\n"
        "print(env.render().shape)\n"
        "from dm_control import _render\n"
        "print(_render.BACKEND)\n"
        "env.close()\n",
        mujoco_gl="",
    )
    assert out.split("\n")[:2] == ["(9, 9, 3)", "osmesa"]
