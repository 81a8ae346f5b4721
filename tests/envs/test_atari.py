"""Atari: the preprocessing, what differs in training, frames, games and resumption."""

import importlib
from collections import deque
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from research.config import build, build_env
from research.envs.atari import import_packages
from research.envs.vector import Vector
from research.errors import UserError
from research.training.filming import frame_rate, render
from tests.envs.test_contract import compose_env
from tests.envs.test_resumable import play, resume

ale_py = pytest.importorskip("ale_py", reason="needs pip install -e '.[atari]'")
cv2 = pytest.importorskip("cv2", reason="needs pip install -e '.[atari]'")
SKIPPED = "action_repeat/skipped_frames"


def make(*overrides: str) -> Vector:
    return build(compose_env("atari", *overrides))


def emulate(game: str, seed: int, sticky: float) -> Any:
    """The emulator itself, seeded as ale-py seeds it, and its generator of no-ops."""
    numpy_seed, ale_seed = np.random.SeedSequence(seed).generate_state(n_words=2)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", sticky)
    ale.setInt("random_seed", np.int32(ale_seed))
    ale.loadROM(importlib.import_module("ale_py.roms").get_rom_path(game))
    ale.reset_game()
    return ale, np.random.default_rng(np.random.PCG64(int(numpy_seed)))


def emulator(env: Vector) -> Any:
    """That of the first environment."""
    return env.envs[0].unwrapped.ale  # type: ignore[attr-defined]


def shrink(*frames: np.ndarray) -> np.ndarray:
    return cv2.resize(np.maximum.reduce(frames), (84, 84), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_observations_and_rewards_are_the_emulators(sticky: float) -> None:
    """Grey frames after up to 30 no-ops, four a step, the maximum of the last two, 84 x 84."""
    keys = f"env.sticky_actions={sticky}", "env.clip_rewards=false"
    env = make("env.game=SpaceInvaders", *keys)
    ale, rng = emulate("space_invaders", seed=11, sticky=sticky)
    for _ in range(rng.integers(1, 31)):
        ale.act(0)
    stack = deque([shrink(ale.getScreenGrayscale())] * 4, maxlen=4)
    obs, _ = env.reset(seed=[11])
    actions = ale.getMinimalActionSet()
    rewards = 0.0
    for action in np.random.default_rng(0).integers(len(actions), size=150):
        np.testing.assert_array_equal(obs[0], np.stack(stack))
        reward, frames = 0.0, []
        for _ in range(4):
            reward += ale.act(actions[action])
            frames.append(ale.getScreenGrayscale())
        stack.append(shrink(*frames[-2:]))
        obs, rewarded, terminated, _, _ = env.step(np.array([action]))
        assert rewarded[0] == reward
        assert terminated[0] == ale.game_over()
        rewards += reward
        if terminated[0]:
            break
    assert rewards > 0


def test_the_keys_reach_the_game() -> None:
    changes = "env.frame_stack=2", "env.grayscale=false", "env.screen_size=42"
    env = make(*changes, "+env.kwargs.full_action_space=true")
    assert env.single_observation_space == spaces.Box(0, 255, (6, 42, 42), np.uint8)
    assert env.single_action_space == spaces.Discrete(18)
    assert make("env.frame_stack=1").single_observation_space.shape == (1, 84, 84)


def play_breakout(env: Vector) -> list[tuple[float, bool, dict[str, Any]]]:
    """Rewards, ends and infos of an episode; the first action, fire, serves the ball."""
    env.reset(seed=[4])
    steps, over = [], False
    while not over and len(steps) < 2000:
        _, reward, terminated, truncated, infos = env.step(np.array([len(steps) % 4]))
        over = bool(terminated[0] or truncated[0])
        steps.append((float(reward[0]), bool(terminated[0]), infos))
    return steps


@pytest.mark.parametrize("life_loss_ends", [False, True])
def test_a_lost_life_ends_an_episode_in_training_alone(life_loss_ends: bool) -> None:
    cfg = compose_env("atari", "env.game=Breakout", f"env.life_loss_ends={life_loss_ends}")
    training, evaluation = build(cfg), build_env(cfg)
    lengths = [len(play_breakout(env)) for env in (training, evaluation)]
    assert emulator(training).lives() == (4 if life_loss_ends else 0)
    assert emulator(evaluation).lives() == 0
    assert (lengths[0] < lengths[1]) == life_loss_ends


@pytest.mark.parametrize("clips", [False, True])
def test_rewards_are_clipped_in_training_alone_and_the_score_is_told(clips: bool) -> None:
    cfg = compose_env("atari", "env.game=SpaceInvaders", f"env.clip_rewards={clips}")
    rewards = {}
    for name, env in (("training", build(cfg)), ("evaluation", build_env(cfg))):
        steps = play_breakout(env)
        rewards[name] = [reward for reward, _, _ in steps]
        for reward, _, infos in steps:
            assert ("score" in infos) == (clips and name == "training")
            assert "lives" not in infos
            if "score" in infos:
                assert np.sign(infos["score"][0]) == reward
    assert max(rewards["evaluation"]) >= 5
    assert set(rewards["training"]) == ({0.0, 1.0} if clips else set(rewards["evaluation"]))
    if clips:
        scores = [infos["score"][0] for *_, infos in play_breakout(build(cfg))]
        assert scores == rewards["evaluation"]


@pytest.mark.parametrize(("limit", "action_repeat"), [(200, 4), (333, 4), (333, 3), (100, 1)])
def test_a_game_is_truncated_after_the_frames_asked_for(limit: int, action_repeat: int) -> None:
    """No-ops count for the limit and for nothing else."""
    keys = f"env.max_episode_steps={limit}", f"env.action_repeat={action_repeat}"
    env = make(*keys)
    assert env.metadata["action_repeat"] == action_repeat
    env.reset(seed=[2])
    ale = emulator(env)
    begun, frames, truncated = ale.getEpisodeFrameNumber(), 0, [False]
    assert 1 <= begun <= 30
    while not truncated[0]:
        _, _, terminated, truncated, infos = env.step(np.array([0]))
        frames += action_repeat
        assert not terminated[0]
        if not truncated[0]:
            assert SKIPPED not in infos
    skipped = int(infos[SKIPPED][0]) if SKIPPED in infos else 0
    assert ale.getEpisodeFrameNumber() == limit
    assert frames - skipped == limit - begun


def test_a_limit_within_the_no_ops_is_refused() -> None:
    with pytest.raises(UserError, match="max_episode_steps must exceed noop_max=30, got 30"):
        make("env.max_episode_steps=30")
    assert make("env.max_episode_steps=1", "env.noop_max=0").reset(seed=[0])[0].shape[0] == 1


@pytest.mark.parametrize("subprocesses", [False, True])
def test_episodes_go_on_in_another_vector_to_the_bit(subprocesses: bool) -> None:
    def vector(*keys: str) -> Vector:
        return make("env.game=MsPacman", "env.num_envs=2", "env.life_loss_ends=true", *keys)

    env, seeds = vector(), [5, 6]
    env.reset(seed=[*seeds])
    play(env, seeds, 40)
    states = env.get_attr("episode_state")
    twin = resume(lambda: vector(f"env.subprocesses={subprocesses}"), seeds, states)
    assert play(twin, [*seeds], 150) == play(env, [*seeds], 150)
    twin.close()


def test_frames_can_be_filmed_at_the_consoles_speed() -> None:
    env = build_env(compose_env("atari"), renders=True)
    env.reset(seed=[0])
    assert render(env, 0).shape == (210, 160, 3)
    assert frame_rate(env) == 15


@pytest.mark.parametrize(
    ("game", "told"),
    [
        ("Ponk", "no game is called 'Ponk'; the nearest of [0-9]+: Pong, "),
        ("space_invaders", "'space_invaders'; the nearest of [0-9]+: SpaceInvaders"),
        ("1", "'1'; the nearest of [0-9]+: none"),
    ],
)
def test_a_wrong_game_is_refused_with_the_nearest(game: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        make(f"env.game='{game}'")


def test_an_option_that_the_game_does_not_take_is_refused() -> None:
    with pytest.raises(UserError, match=r"kwargs must suit 'ALE/Pong-v5': .*'colour'"):
        make("+env.kwargs.colour=red")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(UserError, match=r"env=atari needs ale-py and OpenCV: pip install -e"):
        import_packages()
