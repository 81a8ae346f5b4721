"""How many updates belong to how many steps."""

from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.training.pace import OnPolicy
from tests.training.test_trainer import make_online, off_policy

counts = st.integers(1, 60)


@given(st.integers(0, 50), counts, counts, st.integers(0, 500))
def test_any_ratio_of_updates_to_steps_is_kept_exactly(
    warmup_steps: int, updates_per_step: int, steps_per_update: int, step: int
) -> None:
    pace = off_policy(warmup_steps, updates_per_step, steps_per_update)
    after = max(0, step - warmup_steps)
    ratio = Fraction(updates_per_step, steps_per_update)
    assert pace.count_updates(step) == floor(after * ratio)


@pytest.mark.parametrize(
    ("total_steps", "warmup_steps"),
    [(1_000_000, 10_000), (200_000, 10_000), (199_999, 9_999), (1000, 50), (19, 0)],
)
def test_a_warm_up_that_is_not_named_is_10000_steps_or_a_twentieth_of_the_run(
    total_steps: int, warmup_steps: int
) -> None:
    pace = off_policy(None)
    pace.begin(total_steps, 1)
    assert pace.warmup_steps == warmup_steps
    assert pace.count_updates(warmup_steps) == 0
    assert pace.count_updates(total_steps) == total_steps - warmup_steps


def test_a_longer_run_keeps_its_first_warm_up_unless_another_is_named() -> None:
    first = off_policy(None)
    first.begin(1000, 1)
    for named, kept in ((None, 50), (70, 70), (0, 0)):
        longer = off_policy(named)
        longer.begin(100_000, 1)
        longer.load_state_dict(first.state_dict())
        assert longer.warmup_steps == kept


def test_a_resumed_longer_run_makes_and_plans_the_updates_of_its_first_warm_up(
    tmp_path: Path,
) -> None:
    planned = []

    def schedule(optim: Any, total_updates: int) -> Any:
        planned.append(total_updates)

    for total_steps in (40, 80):
        pace = off_policy(None)
        trainer = make_online(tmp_path, pace=pace, total_steps=total_steps, schedule=schedule)
        trainer.train()
    assert pace.warmup_steps == 2
    assert trainer.learner.updates == 78
    assert planned == [38, 78]


@pytest.mark.parametrize("total_steps", [30, 29])
def test_a_run_within_its_warm_up_is_refused_in_one_line(total_steps: int) -> None:
    with pytest.raises(ValueError, match=r"trainer\.pace\.warmup_steps=30 steps") as caught:
        off_policy(30).begin(total_steps, 1)
    assert "\n" not in str(caught.value)
    off_policy(30).begin(31, 1)


@given(counts, counts, counts, st.integers(1, 5), st.integers(0, 500))
def test_on_policy_every_minibatch_of_every_pass_over_every_whole_rollout_is_an_update(
    horizon: int, epochs: int, minibatches: int, num_envs: int, step: int
) -> None:
    pace = OnPolicy(horizon=horizon, epochs=epochs, minibatches=minibatches)
    pace.begin(horizon * num_envs, num_envs)
    rollouts = range(horizon * num_envs, step + 1, horizon * num_envs)
    assert pace.count_updates(step) == len(rollouts) * epochs * minibatches


def test_a_run_shorter_than_a_rollout_is_refused_in_one_line() -> None:
    words = r"total_steps=19 is less than a rollout of trainer\.pace\.horizon=10 steps in each of 2"
    with pytest.raises(ValueError, match=words) as caught:
        OnPolicy(horizon=10, epochs=1, minibatches=1).begin(19, 2)
    assert "\n" not in str(caught.value)
