"""Updates: from processed batches, by optimizers that are made when they are needed."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ExponentialLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from research.algs.base import Algorithm, Loss, Metrics, Objective, OptimFactory
from research.errors import UserError
from research.processors.base import Processor
from research.training.descent import Descent
from research.training.learner import Learner, check_objectives
from research.training.meter import Phases
from tests.training.toys import ACTION_SPACE, ADAM, OBS_SPACE, Points, Regression

SGD = partial(torch.optim.SGD, lr=1.0)


def make_learner(
    *,
    alg: Algorithm | None = None,
    optim: OptimFactory = ADAM,
    processor: Processor | None = None,
    schedule: Callable[..., LRScheduler] | None = None,
    prefetch: bool | None = None,
    **changes: Any,
) -> Learner:
    torch.manual_seed(0)
    plain: Any = {"precision": "fp32", "accumulate": 1, "ema_decay": None, "execution": "eager"}
    return Learner(
        alg or Regression(optim=optim),
        processor or Processor(OBS_SPACE, ACTION_SPACE),
        Points(),
        torch.device("cpu"),
        total_updates=100,
        schedule=schedule,
        max_grad_norm=None,
        prefetch=prefetch,
        **(plain | changes),
    )


def descent(learner: Learner) -> Descent:
    """What takes the steps of the only objective."""
    assert learner.descents is not None
    return learner.descents["line"]


def make_updates(learner: Learner, count: int) -> None:
    for _ in range(count):
        learner.update(0, Phases(), can_prepare=False)


def test_optimizers_are_made_at_the_first_update_and_once() -> None:
    learner = make_learner()
    assert learner.descents is None
    make_updates(learner, 1)
    first = descent(learner).optim
    make_updates(learner, 2)
    assert descent(learner).optim is first
    assert learner.updates == 3


class Doubling(Processor):
    """Doubles what is learned from."""

    def forward(self, batch: Any) -> Any:
        return tuple(2 * part for part in batch)


class Noting(Regression):
    """Notes what its loss is of, and the step."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, float]] = []

    def draw(self, batch: tuple[Tensor, Tensor], step: Tensor) -> Tensor:
        self.calls.append((batch[0], step.item()))
        return super().draw(batch, step)


class Stepping(Noting):
    """Takes its steps itself."""

    def update(
        self, batch: tuple[Tensor, Tensor], step: Tensor, optimizers: Mapping[str, Optimizer]
    ) -> Metrics:
        loss = self.loss(batch, self.draw(batch, step)).value
        optimizers["line"].zero_grad()
        loss.backward()
        optimizers["line"].step()
        return {"loss": loss.detach()}


@pytest.mark.parametrize("make_alg", [Noting, Stepping])
def test_an_update_is_from_the_processed_batch_and_knows_the_step(
    make_alg: type[Noting],
) -> None:
    alg = make_alg()
    learner = make_learner(alg=alg, processor=Doubling(OBS_SPACE, ACTION_SPACE))
    for step in (7, 8):
        learner.update(step, Phases(), can_prepare=False)
    expected = Points()
    assert [step for _, step in alg.calls] == [7, 8]
    for x, _ in alg.calls:
        assert x.equal(2 * expected.sample()[0])
    assert learner.take_metrics().keys() == {"loss"}


def test_an_update_of_its_own_has_schedules_and_averages_like_any_other() -> None:
    schedule = partial(ExponentialLR, gamma=0.5)
    ends = []
    for make_alg in (Noting, Stepping):
        torch.manual_seed(0)
        learner = make_learner(alg=make_alg(), schedule=schedule, ema_decay=0.9)
        make_updates(learner, 3)
        assert learner.average is not None
        ends.append([learner.take_metrics(), *learner.average.state_dict().values()])
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("setting", "value"), [("precision", "bf16"), ("accumulate", 2), ("execution", "compile")]
)
def test_an_update_of_its_own_is_refused_what_needs_objectives(setting: str, value: Any) -> None:
    message = f"trainer.{setting}={value} needs objectives, but Stepping has an update of its own"
    with pytest.raises(ValueError, match=f"^{message}$"):
        make_learner(alg=Stepping(), **{setting: value})


def objective(name: str, *, every: int = 1, reuses: str | None = None) -> Objective:
    weight = nn.Parameter(torch.zeros(1))
    return Objective(name=name, loss=Loss, trains=[weight], optim=SGD, every=every, reuses=reuses)


@pytest.mark.parametrize(
    ("objectives", "reason"),
    [
        ([objective("q"), objective("q")], "two objectives are named q"),
        ([objective("pi", reuses="q"), objective("q")], "pi reuses the result of q, which must be"),
        ([objective("q", every=2), objective("pi", every=3, reuses="q")], "earlier ones: .'q'"),
    ],
)
def test_objectives_that_do_not_go_together_are_refused(
    objectives: Sequence[Objective], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        check_objectives(objectives)


def test_learning_rates_are_logged_if_they_are_scheduled() -> None:
    learner = make_learner(optim=SGD, schedule=partial(ExponentialLR, gamma=0.5))
    assert learner.take_metrics() == {}
    make_updates(learner, 2)
    assert learner.take_metrics()["lr"] == 0.25
    unscheduled = make_learner()
    make_updates(unscheduled, 2)
    assert unscheduled.take_metrics().keys() == {"loss"}


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
    step, descent(learner).step = descent(learner).step, lambda metrics: False
    make_updates(learner, count)
    descent(learner).step = step


@pytest.mark.parametrize("step_size", [3, 2])
def test_schedules_wait_for_updates_that_were_skipped(step_size: int) -> None:
    schedule = partial(StepLR, step_size=3, gamma=0.5)
    learner = make_learner(optim=SGD, schedule=schedule)
    make_updates(learner, 2)
    skip(learner, 5)
    assert learner.take_metrics()["lr"] == 1.0
    other = make_learner(optim=SGD, schedule=partial(StepLR, step_size=step_size, gamma=0.5))
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for each in (learner, other):
        make_updates(each, 1)
        assert each.take_metrics()["lr"] == 0.5
        assert (each.updates, descent(each).scheduled) == (8, 3)


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
    rate = descent(learner).optim.param_groups[0]
    for score, expected in ((1.0, 1.0), (0.5, 1.0), (0.7, 0.5)):
        learner.take_score(score)
        assert rate["lr"] == expected
    other = make_learner(optim=SGD, schedule=partial(ReduceLROnPlateau, factor=0.5, patience=0))
    other.load_state_dict(learner.state_dict())
    other.take_score(0.6)
    assert descent(other).optim.param_groups[0]["lr"] == 0.25


def test_a_schedule_is_told_how_many_updates_there_will_be() -> None:
    told = []

    def schedule(optim: torch.optim.Optimizer, total_updates: int) -> LRScheduler:
        told.append(total_updates)
        return StepLR(optim, 1)

    make_updates(make_learner(schedule=schedule), 1)
    assert told == [100]
