"""Metrics are means of what came since the last row; what is not finite has a name and a step."""

import time

import pytest
import torch

from research.errors import UserError
from research.training.meter import Metrics, Phases


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value)


def test_each_metric_is_the_mean_of_the_updates_that_had_it() -> None:
    metrics = Metrics("train")
    metrics.add({"q": scalar(1.0), "actor_loss": scalar(5.0)}, step=1)
    metrics.add({"q": scalar(4.0)}, step=2)
    assert metrics.take() == {"q": 2.5, "actor_loss": 5.0}


def test_a_mean_of_many_does_not_lose_the_small_ones() -> None:
    metrics = Metrics("train")
    for value in [2.0**24, *[1.0] * 999]:
        metrics.add({"q": scalar(value)}, step=1)
    assert metrics.take()["q"] == (2**24 + 999) / 1000


def test_many_values_share_few_blocks_of_memory() -> None:
    metrics = Metrics("train")
    for step in range(1000):
        metrics.add({"q": scalar(float(step))}, step=step)
    assert len(metrics.columns["q"].blocks) == 4
    assert metrics.take() == {"q": 499.5}


def test_a_value_that_changes_after_its_update_is_counted_as_it_was() -> None:
    metrics = Metrics("train")
    value = torch.tensor(2.0)
    metrics.add({"q": value}, step=1)
    value.fill_(7.0)
    assert metrics.take() == {"q": 2.0}


def test_integers_and_fractions_of_one_metric_are_not_rounded() -> None:
    metrics = Metrics("train")
    metrics.add({"share": torch.tensor(1), "flag": torch.tensor(True)}, step=1)
    metrics.add({"share": scalar(0.5), "flag": torch.tensor(False)}, step=2)
    assert metrics.take() == {"share": 0.75, "flag": 0.5}


def test_a_metric_has_no_dimensions() -> None:
    with pytest.raises(UserError, match="train/q must be a detached tensor without dimensions"):
        Metrics("train").add({"q": torch.ones(3)}, step=1)


def test_values_not_yet_taken_are_restored_with_their_steps() -> None:
    metrics, restored = Metrics("train"), Metrics("train")
    for step in range(300):
        metrics.add({"q": scalar(0.1 * step)} | ({"p": scalar(1.0)} if step % 2 else {}), step=step)
    restored.load_state_dict(metrics.state_dict(), torch.device("cpu"))
    for each in (metrics, restored):
        each.add({"q": scalar(1.0), "p": scalar(float("nan"))}, step=300)
        with pytest.raises(UserError, match=r"^train/p became nan at step 300;"):
            each.take()
        del each.columns["p"]
    assert metrics.take() == restored.take()


def test_nothing_is_counted_in_two_rows() -> None:
    metrics = Metrics("train")
    metrics.add({"q": scalar(1.0)}, step=1)
    metrics.take()
    assert metrics.take() == {}
    metrics.add({"q": scalar(3.0)}, step=2)
    assert metrics.take() == {"q": 3.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_named_with_its_step(value: float) -> None:
    metrics = Metrics("train")
    for step, q in enumerate([1.0, value, 2.0, value], start=5):
        metrics.add({"loss": scalar(1.0), "q": scalar(q)}, step=step)
    with pytest.raises(UserError, match=f"^train/q became {value} at step 6;"):
        metrics.take()


def test_the_metric_that_went_wrong_first_is_named() -> None:
    metrics = Metrics("train")
    metrics.add({"actor_loss": scalar(1.0), "q": scalar(float("inf"))}, step=3)
    metrics.add({"actor_loss": scalar(float("nan")), "q": scalar(float("nan"))}, step=4)
    with pytest.raises(UserError, match=r"^train/q became inf at step 3;"):
        metrics.take()


def test_shares_are_of_the_time_that_passed_and_sum_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    phases = Phases()
    for name, seconds in [("sample", 1.0), ("update", 5.0), ("sample", 1.0)]:
        now[0] += seconds
        phases.lap(name)
    now[0] += 3.0
    assert phases.take() == {"sample": 0.2, "update": 0.5, "other": 0.3}


def test_time_between_rows_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    phases = Phases()
    now[0] += 7.0
    phases.take()
    now[0] += 1.0
    phases.lap("sample")
    now[0] += 1.0
    assert phases.take() == {"sample": 0.5, "other": 0.5}


def test_no_time_has_no_shares_to_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 10.0)
    assert Phases().take() == {"other": 0.0}
