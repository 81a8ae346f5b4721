"""A trained policy in a notebook: it acts as in training, from the run directory alone."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from research.algs.base import Acted
from research.envs.wrappers import scale_to
from research.errors import UserError
from research.results.load import load, scale_from
from research.status import Status
from research.training.saving.spaces import from_plain, to_plain
from tests.commands import train
from tests.conftest import TOYS
from tests.training.toys import Toy

LENGTHS = [
    *("trainer.total_steps=60", "trainer.log_every=20", "trainer.evaluation.every=30"),
    *("trainer.evaluation.episodes=1", "network.hidden_dims=[16]"),
]
RL = [*LENGTHS, "trainer.pace.warmup_steps=20", "dataset.batch_size=8", "dataset.capacity=100"]
RUNS = {
    "td3": ["alg=td3", "env=pendulum", "processor=normalise", "env.max_episode_steps=30", *RL],
    "dqn": ["alg=dqn", "env=cartpole_gym", *RL],
    "digits": [
        "alg=classification",
        "dataset=digits",
        "network=mlp",
        *LENGTHS,
        "trainer.total_epochs=null",
    ],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directories of a few algorithms."""
    folder = tmp_path_factory.mktemp("runs")
    for name, overrides in RUNS.items():
        process = train(folder / name, *overrides)
        process.join(120)
        assert process.exitcode == 0, (folder / f"{name}.txt").read_text()
    return folder


def test_a_policy_acts_in_the_environments_own_units(runs: Path) -> None:
    policy = load(runs / "td3", "last")
    env = gymnasium.make("Pendulum-v1")
    obs = np.stack([env.reset(seed=seed)[0] for seed in range(5)])
    unit = policy.policy(obs, step=60, explore=False)
    np.testing.assert_allclose(policy(obs), 2 * unit, rtol=1e-6)
    np.testing.assert_allclose(policy(obs[3]), policy(obs)[3], rtol=1e-5)
    assert env.action_space.contains(policy(obs[0]))


def test_its_environment_takes_these_actions(runs: Path) -> None:
    policy = load(runs / "td3")
    ours, own = policy.env(max_episode_steps=3), gymnasium.make("Pendulum-v1")
    obs, _ = ours.reset(seed=1)
    own.reset(seed=1)
    for step in range(3):
        action = policy(obs)
        obs, _, _, truncated, _ = ours.step(action)
        np.testing.assert_allclose(obs, own.step(action)[0], atol=1e-5)
        assert truncated == (step == 2)


def test_the_best_weights_or_the_last_are_loaded(runs: Path) -> None:
    for name in ("best", "last"):
        policy = load(runs / "td3", name)
        path = runs / "td3" / "checkpoints" / name / "weights.pt"
        weights = torch.load(path, weights_only=True)["alg"]
        assert policy.step == int(path.parent.resolve().name)
        assert policy.network.state_dict().keys() == {
            key.removeprefix("network.") for key in weights if key.startswith("network.")
        }
        for key, value in policy.network.state_dict().items():
            torch.testing.assert_close(value, weights[f"network.{key}"], rtol=0, atol=0)


def test_discrete_actions_and_classes_of_examples(runs: Path) -> None:
    cartpole = load(runs / "dqn")
    env = cartpole.env()
    action = cartpole(env.reset(seed=0)[0])
    assert env.action_space.contains(action)
    digits = load(runs / "digits")
    obs = np.zeros((1, 8, 8), np.float32)
    assert digits(obs) in range(10)
    assert digits(np.stack([obs, obs])).shape == (2,)
    with pytest.raises(UserError, match="has no environment"):
        digits.env()


def test_the_config_is_resolved(runs: Path) -> None:
    config = load(runs / "td3").config
    assert config.name == "td3_pendulum"
    assert config.trainer.total_steps == 60


def test_no_environment_and_no_dataset_is_needed(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "td3", tmp_path / "run", symlinks=True)
    path = tmp_path / "run" / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("Pendulum-v1", "Absent-v1"))
    policy = load(tmp_path / "run")
    assert policy(np.zeros(3)).shape == (1,)
    with pytest.raises(UserError, match="'Absent-v1' cannot be made by gymnasium"):
        policy.env()


class Counting(Toy):
    """Acts by the number of the step, which it remembers."""

    def initial_memory(self, num_envs: int) -> Tensor:
        return torch.zeros(num_envs)

    def act_with_memory(
        self, obs: Any, memory: Tensor, info: Mapping[str, Tensor], step: Tensor, explore: bool
    ) -> Acted:
        return Acted(memory[:, None] / 10, memory + 1)


def test_a_memory_lasts_until_an_episode_begins(runs: Path) -> None:
    policy = load(runs / "td3")
    policy.policy.alg = Counting()
    acted = [float(policy(np.zeros(3))[0]) for _ in range(3)]
    policy.reset()
    again = policy(np.zeros((2, 3)))
    np.testing.assert_allclose(acted, [0, 0.2, 0.4])  # in the environment's own units
    np.testing.assert_allclose(again, [[0], [0]])


def test_averaged_weights_are_loaded_where_there_are_any(tmp_path: Path) -> None:
    process = train(tmp_path / "run", *RUNS["td3"], "trainer.ema_decay=0.5")
    process.join(120)
    path = tmp_path / "run" / "checkpoints" / "last" / "weights.pt"
    weights = torch.load(path, weights_only=True)
    loaded = load(tmp_path / "run", "last").policy.alg.state_dict()
    torch.testing.assert_close(loaded, weights["average"], rtol=0, atol=0)
    assert any((loaded[name] != value).any() for name, value in weights["alg"].items())


def test_an_info_that_the_algorithm_acts_on_is_asked_for(runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "dqn", tmp_path / "run", symlinks=True)
    config = run / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("infos: null", "infos: {action_mask: [2]}"))
    policy = load(run)
    with pytest.raises(ValueError, match="the policy acts on the info 'action_mask'"):
        policy(np.zeros(4))
    assert policy(np.zeros(4), {"action_mask": [1, 1]}) in (0, 1)


def test_one_environment_has_no_number_of_environments(runs: Path) -> None:
    with pytest.raises(UserError, match=r"env\(\) makes one environment.*leave out num_envs"):
        load(runs / "td3").env(num_envs=2)


def test_an_environment_of_other_spaces_is_refused(runs: Path) -> None:
    with pytest.raises(
        UserError, match=r"trained with Box.*\(3,\).*the environment has Box.*\(2,\)"
    ):
        load(runs / "td3").env(id="MountainCarContinuous-v0")


def test_an_observation_of_another_shape_is_refused(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(4,\); the policy takes \(3,\)"):
        load(runs / "td3")(np.zeros(4))


def spoil(run: Path, kind: str) -> None:
    """Damage a run directory in one way."""
    config, best = run / ".hydra" / "config.yaml", run / "checkpoints" / "best"
    if kind == "module":
        text = config.read_text().replace("research.algs.td3.TD3", "os.system")
        assert "trusted_modules: []" in text
        config.write_text(text.replace("trusted_modules: []", "trusted_modules: [os]"))
    if kind == "weights":
        (best / "weights.pt").write_bytes(b"x" * 100)
    if kind == "version":
        (best / "manifest.json").write_text('{"version": 99}')
    if kind == "width":
        config.write_text(config.read_text().replace("- 16", "- 17"))
    if kind in ("new", "failed"):
        shutil.rmtree(run / "checkpoints")
    if kind == "failed":
        Status(run).end("failed", "the disk is full")
    if kind == "config":
        config.unlink()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("module", "'os.system' is not in a trusted module"),
        ("weights", "weights.pt is damaged or not a checkpoint"),
        ("version", "is of version 99; this code reads version 1"),
        ("width", "does not fit this code or config"),
        ("new", "has no best checkpoint yet"),
        ("failed", "has no best checkpoint: it failed, the disk is full"),
        ("config", "is no run: it has no .hydra/config.yaml"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_line(
    runs: Path, tmp_path: Path, kind: str, words: str
) -> None:
    run = shutil.copytree(runs / "td3", tmp_path / "run", symlinks=True)
    spoil(run, kind)
    with pytest.raises(UserError) as error:
        load(run)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_users_modules_are_trusted_by_the_caller_alone(tmp_path: Path) -> None:
    process = train(
        tmp_path / "run",
        *("alg=toy_discrete", f"hydra.searchpath=[file://{TOYS}]", "trusted_modules=[tests]"),
        *RL,
    )
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "run.txt").read_text()
    with pytest.raises(UserError, match="is not in a trusted module"):
        load(tmp_path / "run")
    policy = load(tmp_path / "run", trusted_modules=["tests"])
    assert policy.env().action_space.contains(policy(policy.env().reset(seed=0)[0]))


def test_a_folder_that_is_no_run_is_told_with_a_run_in_it(runs: Path) -> None:
    with pytest.raises(UserError, match=f"is no run.*; a run in it is {runs / 'digits'}"):
        load(runs)
    with pytest.raises(UserError, match="does not exist"):
        load(runs / "absent")


SPACES = st.one_of(
    st.builds(
        lambda low, size, dtype: spaces.Box(low, low + 1, (size,), dtype),
        *(st.floats(-5, 5, width=32), st.integers(0, 3), st.sampled_from([np.float32, np.float64])),
    ),
    st.builds(
        lambda low: spaces.Box(
            np.array([low, 0.0], np.float32), np.array([np.inf, 9.0], np.float32)
        ),
        st.sampled_from([-np.inf, -1.0]),
    ),
    st.just(spaces.Box(0, 255, (9, 8, 8), np.uint8)),
    st.builds(
        lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-2, 2)
    ),
    st.just(spaces.MultiDiscrete([2, 3])),
    st.just(spaces.MultiBinary(4)),
    st.just(spaces.Dict({"z": spaces.Discrete(2), "a": spaces.Box(-1, 1, (2,))})),
    st.just(spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (2,))])),
)


@given(space=SPACES)
def test_a_space_is_the_same_after_it_was_written(space: Any) -> None:
    again = from_plain(to_plain(space))
    assert again == space
    assert repr(again) == repr(space)  # with its keys in the same order


@given(low=st.floats(-9, 9), size=st.floats(0.1, 9), share=st.floats(0, 1))
def test_scaling_to_own_units_is_undone(low: float, size: float, share: float) -> None:
    box = spaces.Box(np.float32(low), np.float32(low + size), (1,), np.float32)
    action = np.array([2 * share - 1], np.float32)
    np.testing.assert_allclose(scale_from(box, scale_to(box, action)), action, atol=1e-4)
