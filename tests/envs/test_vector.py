"""Vectors: the same numbers in process and out, no episode mixed, nobody orphaned."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from research.envs.dm_control import make_dm_control
from research.envs.vector import Vector, vectorize
from research.errors import UserError

# A subprocess cannot import this file by its name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SLOW = 4
NO_ACTION = np.zeros((3, 1), np.float32)


class Count(gymnasium.Env):
    """Observes (seed, steps since the reset, process); an episode has ``seed % 4 + 1`` steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        assert seed is not None
        self.seed, self.steps = seed, 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.steps <= self.seed % 4, "the episode was over"
        self.steps += 1
        over = self.steps > self.seed % 4
        return self.observe(), float(self.steps), over, False, {}

    def observe(self) -> np.ndarray:
        return np.array([self.seed, self.steps, os.getpid()], np.float64)


class Broken(Count):
    """Fails at its first step."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        raise ZeroDivisionError("broken on purpose")


class Unrewarding(Count):
    """Gives no reward."""

    def step(self, action: np.ndarray) -> Any:
        obs, _, *rest = super().step(action)
        return obs, None, *rest


class Stuck(Count):
    """Does not come back from its step where the seed is ``SLOW``."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.seed == SLOW:
            time.sleep(600)
        return super().step(action)


class Exits(Count):
    """Ends its process where the seed is 2."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.seed == 2:
            os._exit(7)
        return super().step(action)


def make(
    env_class: Callable[[], gymnasium.Env] = Count,
    *,
    num_envs: int = 3,
    subprocesses: bool,
    action_repeat: int = 1,
) -> Vector:
    return vectorize(
        env_class,
        num_envs=num_envs,
        subprocesses=subprocesses,
        action_repeat=action_repeat,
        flatten_obs=False,
    )


@pytest.mark.parametrize("subprocesses", [False, True])
def test_a_reset_by_mask_touches_the_finished_episodes_only(subprocesses: bool) -> None:
    env = make(subprocesses=subprocesses)
    seeds = np.array([0, 1, 6])  # episodes of 1, 2 and 3 steps
    obs, _ = env.reset(seed=seeds.tolist())
    steps = np.zeros(3)
    for next_seed in range(10, 30):
        np.testing.assert_array_equal(obs[:, :2].T, [seeds, steps])
        obs, reward, terminated, truncated, _ = env.step(NO_ACTION)
        steps += 1
        np.testing.assert_array_equal(obs[:, :2].T, [seeds, steps])
        np.testing.assert_array_equal(reward, steps)
        np.testing.assert_array_equal(terminated, steps > seeds % 4)
        assert not truncated.any()
        if terminated.any():
            seeds[terminated], steps[terminated] = next_seed, 0
            obs, _ = env.reset(seed=seeds.tolist(), options={"reset_mask": terminated})
    processes = {int(process) for process in obs[:, 2]}
    assert (os.getpid() not in processes) == subprocesses
    assert len(processes) == (3 if subprocesses else 1)
    env.close()


def test_subprocesses_give_the_numbers_of_one_process() -> None:
    streams = []
    for subprocesses in (False, True):
        env = make_dm_control(
            domain="reacher",
            task="hard",
            num_envs=3,
            subprocesses=subprocesses,
            action_repeat=2,
            max_episode_steps=None,
            flatten_obs=True,
            height=9,
            width=9,
            camera_id=0,
            pixels=False,
            pixel_size=84,
            frame_stack=3,
        )
        rng, mask = np.random.default_rng(0), np.array([False, True, False])
        stream = [env.reset(seed=[5, 6, 7])[0]]
        for _ in range(3):
            for _ in range(5):
                obs, reward, *_ = env.step(rng.uniform(-1, 1, (3, 2)).astype(np.float32))
                stream += [obs, reward]
            stream.append(env.reset(seed=[8, 9, 10], options={"reset_mask": mask.copy()})[0])
        streams.append(stream)
        env.close()
    for here, there in zip(*streams, strict=True):
        np.testing.assert_array_equal(here, there)


class Choosing(Count):
    """Observes elements of some space."""

    def __init__(self, space: spaces.Space) -> None:
        self.observation_space = space

    def observe(self) -> Any:
        self.observation_space.seed(self.seed + self.steps)
        return self.observation_space.sample()


@pytest.mark.parametrize("subprocesses", [False, True])
@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(5),
        spaces.Box(0, 255, (5,), np.uint8),
        spaces.Box(-9, 9, (5,), np.int64),
        spaces.Tuple([spaces.Discrete(3), spaces.Discrete(2)]),
    ],
    ids=str,
)
def test_observations_that_are_no_floats_become_vectors_of_floats(
    space: spaces.Space, subprocesses: bool
) -> None:
    env = vectorize(
        partial(Choosing, space),
        num_envs=2,
        subprocesses=subprocesses,
        action_repeat=1,
        flatten_obs=True,
    )
    assert env.single_observation_space.shape == (5,)
    seen = [env.reset(seed=[2, 3])[0], env.step(NO_ACTION[:2])[0]]
    env.close()
    for steps, obs in enumerate(seen):
        assert obs.dtype == np.float32
        for seed, row in zip((2, 3), obs, strict=True):
            space.seed(seed + steps)
            np.testing.assert_array_equal(row, spaces.flatten(space, space.sample()))


@pytest.mark.parametrize("subprocesses", [False, True])
def test_a_vector_tells_which_episodes_it_could_not_restore(subprocesses: bool) -> None:
    seeds: list[int | None] = [2, 3, 3]
    env, other = make(subprocesses=subprocesses), make(subprocesses=subprocesses)
    for each in (env, other):
        each.reset(seed=seeds)
    env.step(NO_ACTION)
    states = list(env.get_attr("episode_state"))
    states[1] = None
    other.set_attr("episode_state", states)
    # what Count observes is another number in another process
    assert other.get_attr("is_restored") == (not subprocesses, False, not subprocesses)
    obs, _ = other.reset(seed=[5, 5, 5])
    np.testing.assert_array_equal(obs[:, :2], [[5, 0]] * 3)
    for each in (env, other):
        each.close()


@pytest.mark.parametrize("subprocesses", [False, True])
def test_a_vector_tells_its_action_repeat(subprocesses: bool) -> None:
    env = make(subprocesses=subprocesses, action_repeat=2, num_envs=1)
    assert env.metadata["action_repeat"] == 2
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert "action_repeat" not in Count.metadata
    env.reset(seed=[7])
    obs, reward, *_ = env.step(NO_ACTION[:1])
    assert (obs[0, 1], reward[0]) == (2, 1 + 2)
    assert (env.num_envs, env.single_observation_space.dtype) == (1, np.float32)
    env.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_are_for_the_parent_alone(number: signal.Signals) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    env = make(num_envs=1, subprocesses=True)
    assert isinstance(env, AsyncVectorEnv)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    for process in env.processes:
        os.kill(process.pid or 0, number)
    assert env.reset(seed=[3])[0][0, 0] == 3
    env.close()


@pytest.mark.filterwarnings("error")
def test_a_subprocess_reports_its_exception_with_its_traceback() -> None:
    env = make(Broken, num_envs=2, subprocesses=True)
    env.reset(seed=[0, 1])
    with pytest.raises(ZeroDivisionError, match="broken on purpose") as error:
        env.step(NO_ACTION[:2])
    assert "in step" in str(error.value.__cause__)
    env.close()


@pytest.mark.filterwarnings("error")
def test_what_a_subprocess_refuses_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    env = make(Unrewarding, num_envs=2, subprocesses=True)
    env.reset(seed=[3, 3])
    with pytest.raises(UserError, match=r"^<Unrewarding instance>: a reward must be one number"):
        env.step(NO_ACTION[:2])
    env.close()
    assert not any(capfd.readouterr())


@pytest.mark.parametrize("killed", [0, 1])
def test_the_end_of_a_process_is_told_and_not_waited_for(killed: int) -> None:
    env = make(Stuck, num_envs=2, subprocesses=True)
    assert isinstance(env, AsyncVectorEnv)
    env.reset(seed=[SLOW, 3] if killed else [3, SLOW])
    os.kill(env.processes[killed].pid or 0, signal.SIGKILL)
    env.processes[killed].join()
    with pytest.raises(UserError, match=f"^environment {killed} was killed by SIGKILL"):
        env.step(NO_ACTION[:2])
    env.close()
    assert not any(process.is_alive() for process in env.processes)


def test_the_end_of_a_process_in_its_step_is_told() -> None:
    env = make(Stuck, num_envs=1, subprocesses=True)
    assert isinstance(env, AsyncVectorEnv)
    env.reset(seed=[SLOW])
    env.step_async(NO_ACTION[:1])
    os.kill(env.processes[0].pid or 0, signal.SIGSEGV)
    with pytest.raises(UserError, match=r"^environment 0 was killed by SIGSEGV$"):
        env.step_wait()
    env.close()


def test_an_environment_that_ends_its_process_is_named() -> None:
    env = make(Exits, num_envs=2, subprocesses=True)
    env.reset(seed=[3, 2])
    with pytest.raises(UserError, match=r"^the process of environment 1 ended with status 7$"):
        env.step(NO_ACTION[:2])
    env.close()


def test_a_step_that_is_not_over_does_not_delay_the_end() -> None:
    env = make(Stuck, num_envs=1, subprocesses=True)
    assert isinstance(env, AsyncVectorEnv)
    env.reset(seed=[SLOW])
    env.step_async(NO_ACTION[:1])
    env.close()
    assert not env.processes[0].is_alive()


PARENT = """
import os, sys, time
from functools import partial
import gymnasium
from research.envs.vector import vectorize

class Slow(gymnasium.Wrapper):
    def step(self, action):
        time.sleep(600)

def make_slow():
    return Slow(gymnasium.make("Pendulum-v1"))

if __name__ == "__main__":
    make = partial(vectorize, num_envs=2, subprocesses=True, action_repeat=1, flatten_obs=False)
    idle, busy = make(partial(gymnasium.make, "Pendulum-v1")), make(make_slow)
    idle.reset(seed=0)
    busy.reset(seed=0)
    busy.step_async(busy.action_space.sample())
    print(*[process.pid for env in (idle, busy) for process in env.processes], flush=True)
    time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for ever for somebody to ask for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_subprocesses_end_with_their_parent(how: int, tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen(
        [sys.executable, str(program)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    children = [int(pid) for pid in parent.stdout.readline().split()]
    try:
        assert len(children) == 4
        assert all(map(is_alive, children))
        parent.send_signal(how)
        parent.wait()
        deadline = time.monotonic() + 10
        while any(map(is_alive, children)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(map(is_alive, children))
    finally:
        parent.kill()
        parent.stdout.close()
        for pid in filter(is_alive, children):
            os.kill(pid, signal.SIGKILL)
