"""Optimizers: made when they are needed, bounded, and refused in one line."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    ExponentialLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from research.algs.base import Metrics, OptimFactory, take_step
from research.errors import UserError
from research.processors.base import Processor
from research.training.learner import Learner, clip_gradients
from research.training.meter import Phases
from tests.training.toys import ACTION_SPACE, ADAM, OBS_SPACE, Points, Regression

SGD = partial(torch.optim.SGD, lr=1.0)


def make_learner(
    *,
    optim: OptimFactory = ADAM,
    processor: Processor | None = None,
    schedule: Callable[..., LRScheduler] | None = None,
    max_grad_norm: float | None = None,
    prefetch: bool | None = None,
) -> Learner:
    torch.manual_seed(0)
    return Learner(
        Regression(optim=optim),
        processor or Processor(OBS_SPACE, ACTION_SPACE),
        Points(),
        torch.device("cpu"),
        total_updates=100,
        schedule=schedule,
        max_grad_norm=max_grad_norm,
        prefetch=prefetch,
    )


def make_updates(learner: Learner, count: int) -> None:
    for _ in range(count):
        learner.update(0, Phases(), can_prepare=False)


def test_optimizers_are_made_at_the_first_update_and_once() -> None:
    learner = make_learner()
    assert learner.alg.optimizers == {}
    make_updates(learner, 1)
    first = learner.alg.optimizers["line_optim"]
    make_updates(learner, 2)
    assert learner.alg.optimizers["line_optim"] is first
    assert learner.updates == 3


def test_an_update_gets_the_processed_batch_and_the_counts() -> None:
    class Doubling(Processor):
        def forward(self, batch: Any) -> Any:
            return tuple(2 * part for part in batch)

    calls = []

    def update(batch: tuple[Tensor, Tensor], *, step: int, updates: int) -> Metrics:
        calls.append((batch[0], step, updates))
        return {"loss": torch.tensor(float(step))}

    learner = make_learner(processor=Doubling(OBS_SPACE, ACTION_SPACE))
    learner.alg.update = update  # type: ignore[method-assign]
    for step in (7, 8):
        learner.update(step, Phases(), can_prepare=False)
    expected = Points()
    for (x, *counts), wanted in zip(calls, [[7, 0], [8, 1]], strict=True):
        assert counts == wanted
        assert x.equal(2 * expected.sample()[0])
    assert learner.take_metrics() == {"loss": 7.5}


def test_learning_rates_are_logged_if_they_are_scheduled() -> None:
    learner = make_learner(optim=SGD, schedule=partial(ExponentialLR, gamma=0.5))
    assert learner.take_metrics() == {}
    make_updates(learner, 2)
    assert learner.take_metrics()["line_optim_lr"] == 0.25
    unscheduled = make_learner()
    make_updates(unscheduled, 2)
    assert unscheduled.take_metrics().keys() == {"loss"}


def test_the_bound_is_on_the_norm_of_all_gradients_of_an_optimizer() -> None:
    weights = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    optim = SGD(weights)
    clip_gradients(optim, 1.0)
    take_step(optim, 3 * weights[0].sum() + 4 * weights[1].sum())
    assert [weight.item() for weight in weights] == pytest.approx([-0.6, -0.8])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"optim": partial(torch.optim.Adam, lr=-1.0)}, "Invalid learning rate: -1.0"),
        ({"schedule": partial(ExponentialLR)}, "missing 1 required positional argument: 'gamma'"),
        ({"schedule": partial(OneCycleLR, max_lr=1.0)}, "total_steps"),
    ],
)
def test_settings_that_torch_refuses_are_told_in_one_line(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        make_updates(make_learner(**options), 1)
    assert "trainer.schedule" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("before", [0, 3])
def test_a_loaded_learner_makes_the_same_updates(before: int) -> None:
    options: Any = {"optim": ADAM, "schedule": partial(StepLR, step_size=4)}
    learner, other = make_learner(**options), make_learner(**options)
    make_updates(learner, before)
    other.alg.load_state_dict(learner.alg.state_dict())
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    other.dataset.load(learner.dataset.save(Path()), Path())
    for each in (learner, other):
        torch.manual_seed(1)
        make_updates(each, 2)
    assert other.updates == learner.updates == before + 2
    for name, value in learner.alg.state_dict().items():
        assert value.equal(other.alg.state_dict()[name])


def skip(learner: Learner, count: int) -> None:
    learner.alg.is_skipped = True
    make_updates(learner, count)
    learner.alg.is_skipped = False


@pytest.mark.parametrize("step_size", [3, 2])
def test_schedules_wait_for_updates_that_were_skipped(step_size: int) -> None:
    schedule = partial(StepLR, step_size=3, gamma=0.5)
    learner = make_learner(optim=SGD, schedule=schedule)
    make_updates(learner, 2)
    skip(learner, 5)
    assert learner.take_metrics()["line_optim_lr"] == 1.0
    other = make_learner(optim=SGD, schedule=partial(StepLR, step_size=step_size, gamma=0.5))
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for each in (learner, other):
        make_updates(each, 1)
        assert each.take_metrics()["line_optim_lr"] == 0.5
        assert (each.updates, each.scheduled) == (8, 3)


def test_a_state_from_before_the_first_update_undoes_a_later_one() -> None:
    """The later one was of a checkpoint whose rows turned out to be damaged."""
    options: Any = {"optim": ADAM, "schedule": partial(StepLR, step_size=4)}
    early, late, other = (make_learner(**options) for _ in range(3))
    make_updates(late, 6)
    weights = copy.deepcopy(early.alg.state_dict())
    for state in (late.state_dict(), early.state_dict()):
        other.load_state_dict(copy.deepcopy(state))
    other.alg.load_state_dict(weights)
    other.dataset.load(early.dataset.save(Path()), Path())
    for each in (early, other):
        torch.manual_seed(1)
        make_updates(each, 3)
    for name, value in early.alg.state_dict().items():
        assert value.equal(other.alg.state_dict()[name])


def test_prefetch_of_a_dataset_that_cannot_is_refused() -> None:
    with pytest.raises(ValueError, match="prefetch is true, but a Points prepares no batches"):
        make_learner(prefetch=True)


def test_a_plateau_is_seen_by_scores_and_not_by_updates() -> None:
    learner = make_learner(optim=SGD, schedule=partial(ReduceLROnPlateau, factor=0.5, patience=0))
    make_updates(learner, 3)
    rate = learner.alg.optimizers["line_optim"].param_groups[0]
    for score, expected in ((1.0, 1.0), (0.5, 1.0), (0.7, 0.5)):
        learner.take_score(score)
        assert rate["lr"] == expected
    other = make_learner(optim=SGD, schedule=partial(ReduceLROnPlateau, factor=0.5, patience=0))
    other.load_state_dict(learner.state_dict())
    other.take_score(0.6)
    assert other.alg.optimizers["line_optim"].param_groups[0]["lr"] == 0.25


def test_a_schedule_is_told_how_many_updates_there_will_be() -> None:
    told = []

    def schedule(optim: torch.optim.Optimizer, total_updates: int) -> LRScheduler:
        told.append(total_updates)
        return StepLR(optim, 1)

    make_updates(make_learner(schedule=schedule), 1)
    assert told == [100]
