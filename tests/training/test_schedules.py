"""Learning rates at chosen updates, against values by hand and torch's own schedules."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from research.training.schedules import make_cosine, make_linear, make_plateau, make_steps


def make_optim() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)


def rates(make: Any, count: int) -> list[float]:
    """The rate of each of the first updates."""
    optim = make_optim()
    schedule, found = make(optim), []
    for _ in range(count):
        found.append(optim.param_groups[0]["lr"])
        optim.step()
        schedule.step()
    return found


def test_without_warm_up_the_cosine_is_torchs() -> None:
    ours = partial(make_cosine, total_updates=20, warmup_updates=0, final_share=0.1)
    torchs = partial(CosineAnnealingLR, T_max=20, eta_min=0.2)
    assert rates(ours, 20) == pytest.approx(rates(torchs, 20))


def test_the_rate_rises_linearly_and_then_falls() -> None:
    found = rates(partial(make_cosine, total_updates=12, warmup_updates=4, final_share=0.0), 13)
    assert found[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert found[8] == pytest.approx(1.0)
    assert found[12] == pytest.approx(0.0, abs=1e-12)
    assert found[4:] == sorted(found[4:], reverse=True)


def test_a_line_falls_evenly_to_its_end_and_stays_there() -> None:
    found = rates(partial(make_linear, total_updates=6, warmup_updates=2, final_share=0.2), 9)
    assert found == pytest.approx([1.0, 2.0, 2.0, 1.6, 1.2, 0.8, 0.4, 0.4, 0.4])


def test_behind_its_end_the_cosine_stays() -> None:
    found = rates(partial(make_cosine, total_updates=3, warmup_updates=0, final_share=0.5), 6)
    assert found[3:] == pytest.approx([1.0, 1.0, 1.0])


def test_steps_multiply_at_their_shares_of_the_run() -> None:
    make = partial(
        make_steps, total_updates=8, warmup_updates=2, milestones=[0.5, 0.75], factor=0.1
    )
    expected = [1.0, 2.0, 2.0, 2.0, 0.2, 0.2, 0.02, 0.02]
    assert rates(make, 8) == pytest.approx(expected)


@pytest.mark.parametrize(("mode", "scores"), [("max", [1.0, 0.9, 0.9]), ("min", [1.0, 1.1, 1.1])])
def test_a_plateau_lowers_the_rate_when_patience_is_over(mode: Any, scores: list[float]) -> None:
    optim = make_optim()
    schedule = make_plateau(optim, mode=mode, factor=0.5, patience=1)
    found = []
    for score in scores:
        schedule.step(score)
        found.append(optim.param_groups[0]["lr"])
    assert found == [2.0, 2.0, 1.0]


def test_a_rise_as_long_as_the_run_is_refused() -> None:
    for make in (partial(make_cosine, final_share=0), partial(make_steps, milestones=[], factor=1)):
        with pytest.raises(ValueError, match="below the 5 updates of the run, got 5"):
            make(make_optim(), 5, warmup_updates=5)
