"""What holds for every environment that has a yaml."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, VectorEnv
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from research.config import build
from research.envs.spaces import DeclaredSpaces
from research.hydra_versions import VERSION_BASE

CONF = Path(__file__).parents[2] / "conf"
NATIVE = ["envpool", "native"]
NEEDS = {"gym": "gym", "envpool": "envpool", "atari": "ale_py", "minatar": "minatar"}
"""The packages that environments need, each an extra of the environment's name."""
FRAMES = {"atari": 4}
"""Frames per step, where they are not one."""
NAMES = sorted(
    path.stem
    for path in (CONF / "env").glob("*.yaml")
    if "DeclaredSpaces" not in path.read_text() and path.stem not in NATIVE
)
USER_GIVES = {
    "dmc": ["env.domain=fish", "env.task=swim"],
    "gymnasium": ["env.id=Hopper-v5"],
    "gym": ["env.id=MountainCarContinuous-v0"],
    "native": ["env.id=CartPole-v1"],
    "envpool": ["env.id=Pendulum-v1"],
    "atari": ["env.game=Pong"],
    "minatar": ["env.game=breakout"],
    "none": ["env.observation_space.shape=[17]", "env.action_space.shape=[6]"],
}


def compose_env(name: str, *overrides: str) -> DictConfig:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"needs pip install -e '.[{name}]'")
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        return compose(f"env/{name}", [*USER_GIVES.get(name, []), *overrides]).env


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
@pytest.mark.filterwarnings("ignore:.*(minimum|maximum) value is -?infinity")
@pytest.mark.filterwarnings("ignore:.*not able to test alternative render modes")
@pytest.mark.parametrize("name", NAMES)
def test_every_environment_obeys_gymnasium(name: str) -> None:
    env = build(compose_env(name))
    assert isinstance(env, VectorEnv)
    assert (env.num_envs, env.metadata["action_repeat"]) == (1, FRAMES.get(name, 1))
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert isinstance(env.single_observation_space, gymnasium.spaces.Box)
    is_image = len(env.single_observation_space.shape) == 3
    assert env.single_observation_space.dtype == (np.uint8 if is_image else np.float32)
    box = env.single_action_space
    if isinstance(box, gymnasium.spaces.Box):
        assert box == gymnasium.spaces.Box(-1, 1, box.shape, np.float32)
    check_env(env.envs[0], skip_render_check=True)  # type: ignore[attr-defined]
    env.close()


@pytest.mark.parametrize("name", NAMES)
def test_every_environment_has_the_keys_that_all_share(name: str) -> None:
    keys = compose_env(name)
    shared = keys.num_envs, keys.subprocesses, keys.action_repeat, keys.get("flatten_obs", True)
    assert shared == (1, False, FRAMES.get(name, 1), True)
    assert keys.max_episode_steps is None or name == "atari"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "atari"])
@pytest.mark.parametrize(("limit", "action_repeat", "num_steps"), [(2, 1, 2), (3, 2, 2)])
def test_an_episode_is_truncated_after_the_frames_asked_for(
    name: str, limit: int, action_repeat: int, num_steps: int
) -> None:
    keys = [f"env.max_episode_steps={limit}", f"env.action_repeat={action_repeat}"]
    env = build(compose_env(name, *keys))
    for seed in (0, 1):
        env.reset(seed=[seed])
        for step in range(1, num_steps + 1):
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated[0]:
                break  # it may end earlier
            assert truncated[0] == (step == num_steps)


@pytest.mark.parametrize(("name", "own"), [("cartpole", 1000), ("pendulum", 200), ("gym", 999)])
def test_an_episode_may_be_longer_than_the_environments_own(name: str, own: int) -> None:
    env = build(compose_env(name, f"env.max_episode_steps={own + 5}"))
    env.reset(seed=[0])
    action = np.zeros_like(env.action_space.sample())
    ends = [env.step(action)[3].item() for _ in range(own + 5)]
    assert ends == [False] * (own + 4) + [True]


@pytest.mark.parametrize("name", NATIVE)
def test_environments_that_reset_themselves_give_standard_arrays(name: str) -> None:
    env = build(compose_env(name, "env.num_envs=3", "env.max_episode_steps=4"))
    assert env.metadata["autoreset_mode"] is not AutoresetMode.DISABLED
    shared = {"action_repeat": 1, "frame_stack": 1, "is_resumable": False}
    assert {key: env.metadata[key] for key in shared} == shared
    if isinstance(box := env.single_action_space, gymnasium.spaces.Box):
        assert box == gymnasium.spaces.Box(-1, 1, box.shape, np.float32)
    obs, _ = env.reset(seed=1)
    ends = []
    for _ in range(12):
        assert env.observation_space.contains(obs)
        assert obs.dtype == np.float32
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert (reward.shape, terminated.shape, truncated.shape) == ((3,), (3,), (3,))
        assert (terminated.dtype, truncated.dtype) == (np.bool_, np.bool_)
        assert not terminated.any()
        ends.append(truncated.all())
    assert ends == [False, False, False, True, False] * 2 + [False, False]  # the fifth only resets
    env.close()


@pytest.mark.parametrize("name", NATIVE)
def test_environments_that_reset_themselves_begin_anew_with_a_seed(name: str) -> None:
    env = build(compose_env(name, "env.num_envs=3"))
    env.action_space.seed(0)
    action = env.action_space.sample()
    obs = []
    for seed in (1, 1, 2):
        first, _ = env.reset(seed=seed)
        obs.append(np.stack([first, *(env.step(action)[0] for _ in range(30))]))
    np.testing.assert_array_equal(obs[0], obs[1])
    assert not (obs[0] == obs[2]).all(axis=(1, 2)).any()
    env.close()


def test_declared_spaces_build_from_their_yaml() -> None:
    env = build(compose_env("none"))
    assert isinstance(env, DeclaredSpaces)
    assert env.single_observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (17,))
    assert env.single_action_space == gymnasium.spaces.Box(-1, 1, (6,))


def test_a_task_can_be_swapped_on_the_command_line() -> None:
    env = build(compose_env("cartpole", "env.task=two_poles", "env.num_envs=2"))
    assert env.observation_space.shape == (2, 8)
