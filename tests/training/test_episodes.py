"""What is logged of an episode."""

from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from research.training.episodes import Episodes, mean_metrics, metric_name
from research.training.records.logger import check_names
from tests.training.toys import Count


class Told(Count):
    """Reports the infos that it was made with, one step after the other."""

    def __init__(self, infos: list[dict[str, Any]]) -> None:
        super().__init__(length=len(infos))
        self.infos = infos

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, self.infos[self.steps - 1]


def run(*told: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Episodes of as many environments, all of the same length."""
    makers: list[Any] = [partial(Told, infos) for infos in told]
    env: SyncVectorEnv = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    episodes = Episodes(len(told))
    for _ in told[0]:
        _, reward, _, _, infos = env.step(np.zeros((len(told), 1), np.float32))
        episodes.add(reward, infos)
    return [episodes.finish(index) for index in range(len(told))]


def test_return_and_length_are_sums() -> None:
    assert run([{}, {}, {}]) == [{"return": 1.0 + 2.0 + 3.0, "length": 3.0}]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("success", [0.0, 1.0, 0.0], 1.0),
        ("success", [-3.0, -2.0, -4.0], -2.0),
        ("success", [False, True, False], 1.0),
        ("success", [np.False_, np.True_, np.False_], 1.0),
        ("distance_to_goal", [3.0, 0.5, 2.0], 2.0),
        ("distance", [3, 1, 2], 2.0),
        ("control_cost", [0.25, 0.5, 0.25], 1.0),
        ("collisions", [np.int64(1), np.int64(1), np.int64(0)], 2.0),
        ("energy", [np.float32(0.5), np.float32(0.5), np.float32(1)], 2.0),
    ],
)
def test_numbers_are_summed_but_success_and_distance(
    name: str, values: list[float], expected: float
) -> None:
    assert run([{name: value} for value in values])[0][name] == expected


def test_a_number_counts_only_where_and_when_it_is_reported() -> None:
    one = [{"success": 0.0}, {"bonus": 5.0}, {"bonus": 1.0}]
    other = [{}, {"success": 1.0, "distance": 4.0}, {}]
    first, second = run(one, other)
    assert first == {"return": 6.0, "length": 3.0, "success": 0.0, "bonus": 6.0}
    assert second == {"return": 6.0, "length": 3.0, "success": 1.0, "distance": 4.0}


def test_what_is_no_number_is_left_out() -> None:
    info = {"text": "a", "pose": np.ones(3), "episode": {"r": 1.0}, "none": None, "z": 1j}
    assert run([info], [info])[0].keys() == {"return", "length"}


def test_the_next_episode_starts_at_nothing_and_the_others_go_on() -> None:
    episodes = Episodes(2)
    infos = {"bonus": np.ones(2), "_bonus": np.ones(2, bool)}
    episodes.add(np.array([1.0, 10.0]), infos)
    assert episodes.finish(0) == {"return": 1.0, "length": 1.0, "bonus": 1.0}
    episodes.add(np.array([2.0, 20.0]), infos)
    assert episodes.finish(0) == {"return": 2.0, "length": 1.0, "bonus": 1.0}
    assert episodes.finish(1) == {"return": 30.0, "length": 2.0, "bonus": 2.0}


def test_an_environment_cannot_overwrite_the_return() -> None:
    assert run([{"return": 100.0, "length": 50}]) == [
        {"return": 1.0, "length": 1.0, "info_return": 100.0, "info_length": 50.0}
    ]


@settings(max_examples=30)
@given(st.one_of(st.text(min_size=1), st.sampled_from(["step", "seconds", "return", "x velocity"])))
def test_every_name_can_be_logged(info: str) -> None:
    check_names("env", {metric_name(info): 0.0})


def test_usual_names_stay_as_they_are() -> None:
    for name in ("success", "distance_to_goal", "x-velocity", "TimeLimit.truncated", "reward/ctrl"):
        assert metric_name(name) == name


def test_means_are_over_the_episodes_that_report_a_number() -> None:
    episodes = [{"return": 1.0, "success": 1.0}, {"return": 3.0}]
    assert mean_metrics(episodes) == {"return": 2.0, "success": 1.0}
    assert mean_metrics([]) == {}
