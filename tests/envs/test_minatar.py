"""MinAtar: the planes, seeds, actions and frames of its games."""

import importlib
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from research.config import build, build_env
from research.envs.minatar import GAMES, MinAtar, import_minatar
from research.envs.vector import Vector
from research.errors import UserError
from research.training.filming import render
from tests.envs.test_contract import compose_env
from tests.envs.test_resumable import play, resume

minatar = pytest.importorskip("minatar", reason="needs pip install -e '.[minatar]'")
SETTINGS: dict[str, Any] = {
    "game": "breakout",
    "sticky_actions": 0.0,
    "difficulty_ramping": True,
    "minimal_actions": False,
}


def make(**changes: Any) -> MinAtar:
    return MinAtar(**(SETTINGS | changes))


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("sticky_actions", [0.0, 0.5])
def test_steps_are_those_of_the_package(game: str, sticky_actions: float) -> None:
    env = make(game=game, sticky_actions=sticky_actions)
    reference = minatar.Environment(game, sticky_action_prob=sticky_actions)
    reference.seed(3)
    reference.reset()
    obs, _ = env.reset(seed=3)
    total = 0.0
    for action in np.random.default_rng(0).integers(6, size=300):
        np.testing.assert_array_equal(obs, reference.state().transpose(2, 0, 1))
        assert obs.dtype == np.uint8
        assert env.observation_space.contains(obs)
        obs, reward, terminated, truncated, _ = env.step(action)
        assert (reward, terminated) == reference.act(int(action))
        assert not truncated
        total += reward
        if terminated:
            break
    assert env.observation_space.shape == (reference.n_channels, 10, 10)


def test_there_are_the_actions_asked_for() -> None:
    assert make().action_space == spaces.Discrete(6)
    env = make(minimal_actions=True)
    assert env.action_space == spaces.Discrete(3)  # none, left, right
    env.reset(seed=0)
    for action, place in ((2, 5), (1, 4), (0, 4)):
        obs, *_ = env.step(action)
        assert obs[0, 9].argmax() == place


def test_an_episode_does_not_depend_on_the_one_before() -> None:
    """The package itself keeps the last action, which a sticky step repeats."""
    env, fresh = make(sticky_actions=0.9), make(sticky_actions=0.9)
    env.reset(seed=0)
    while env.game.last_action != 3:  # right
        env.step(3)
    for each in (env, fresh):
        each.reset(seed=0)  # whose first step is sticky
    steps = [[each.step(1)[0].tobytes() for _ in range(8)] for each in (env, fresh)]
    assert steps[0] == steps[1]


def test_the_game_becomes_harder_if_it_is_to() -> None:
    for ramping in (True, False):
        assert make(game="asterix", difficulty_ramping=ramping).game.env.ramping == ramping


def test_the_yaml_has_the_papers_numbers_and_its_keys_reach_the_game() -> None:
    game = build(compose_env("minatar")).envs[0].unwrapped.game
    assert (game.env_name, game.sticky_action_prob) == ("breakout", 0.1)
    keys = ("env.sticky_actions=0.5", "env.minimal_actions=true", "env.game=freeway")
    env = build(compose_env("minatar", *keys))
    assert env.envs[0].unwrapped.game.sticky_action_prob == 0.5
    assert env.single_action_space == spaces.Discrete(3)


def test_episodes_go_on_in_another_vector_to_the_bit() -> None:
    def vector() -> Vector:
        return build(compose_env("minatar", "env.game=seaquest", "env.num_envs=2"))

    env, seeds = vector(), [5, 6]
    env.reset(seed=[*seeds])
    play(env, seeds, 60)
    twin = resume(vector, seeds, env.get_attr("episode_state"))
    assert play(twin, [*seeds], 80) == play(env, [*seeds], 80)


def test_frames_show_every_plane_in_a_colour_of_its_own() -> None:
    env = build_env(compose_env("minatar"), renders=True)
    env.reset(seed=[0])
    for _ in range(2):  # away from the bricks
        env.step(np.array([0]))
    frame = render(env, 0)
    assert frame.shape == (160, 160, 3)
    assert frame.dtype == np.uint8
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) == 5  # none, paddle, ball, trail, bricks


def test_a_wrong_game_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'brakeout'; allowed: asterix, .*mean 'breakout'\?"):
        make(game="brakeout")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(UserError, match=r"env=minatar needs MinAtar: pip install -e '\.\[minat"):
        import_minatar()
