"""Whole updates as graphs: eager ones but for rounding, and of whom they can be made."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from research.algs.base import Loss, Objective
from research.algs.regression import Regression
from research.batches import Example
from research.training.compiled import CompiledUpdates
from research.training.gradient import CompiledGradients
from research.training.learner import Learner
from tests.algs.learning import make_learner
from tests.algs.test_supervised import make, make_cnn, make_mlp
from tests.training.test_gradient import needs_compiler

ADAM = partial(Adam, lr=0.01)
HALVES = partial(LambdaLR, lr_lambda=lambda count: 0.5**count)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torch.compile return the function that it gets."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def make_double(optim: Any = ADAM, **settings: Any) -> Learner:
    """A learner in float64, where Adam does not magnify what rounding does."""
    learner = make(optim=optim, **settings)
    learner.alg.double()
    if learner.average is not None:
        learner.average.double()
    return learner


def make_batch(size: int = 10) -> Example:
    """A batch in float64."""
    return Example(torch.randn(size, 3).double(), torch.randn(size, 2).double())


def train(learner: Learner, batches: list[Example]) -> list[Any]:
    """What updates return and lead to."""
    metrics = [learner.learn(batch) for batch in batches]
    average = learner.average.state_dict() if learner.average else {}
    return [metrics, learner.alg.state_dict(), average]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_grad_norm": 0.01},
        {"ema_decay": 0.9},
        {"schedule": HALVES},
        {"optim": partial(AdamW, lr=0.01, weight_decay=0.1)},
        {"optim": partial(Adam, lr=0.01, weight_decay=0.1, fused=True)},
    ],
    ids=["default", "max_grad_norm", "ema_decay", "schedule", "adamw", "weight_decay"],
)
def test_a_graph_makes_the_updates_of_eager_steps(settings: dict[str, Any]) -> None:
    batches = [make_batch(size) for size in (10, 10, 7, 10, 7, 10)]
    plain, whole = make_double(**settings), make_double(execution="compile", **settings)
    for _ in range(2):
        found = [train(learner, batches) for learner in (plain, whole)]
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
        states = [learner.state_dict()["descents"] for learner in (plain, whole)]
        torch.testing.assert_close(*states, rtol=1e-9, atol=1e-11)
        assert isinstance(whole.steps.compiled, CompiledUpdates)


@given(
    optim=st.sampled_from([Adam, AdamW]),
    rate=st.floats(1e-5, 1.0),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.9999)),
    epsilon=st.floats(1e-10, 0.1),
    weight_decay=st.floats(0, 0.5),
)
def test_steps_are_those_of_torchs_adam(
    optim: Any, rate: float, betas: tuple[float, float], epsilon: float, weight_decay: float
) -> None:
    made = partial(optim, lr=rate, betas=betas, eps=epsilon, weight_decay=weight_decay)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **options: function)
        batches = [make_batch() for _ in range(4)]
        learners = [make_double(made, execution=execution) for execution in ("eager", "compile")]
        found = [train(learner, batches) for learner in learners]
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-9)
    assert learners[1].steps.compiled is not None


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("executions", [("eager", "compile"), ("compile", "eager")])
def test_one_goes_on_where_the_other_was(executions: tuple[str, str]) -> None:
    batches = [make_batch() for _ in range(6)]
    first, second = (make_double(schedule=HALVES, execution=each) for each in executions)
    expected = train(make_double(schedule=HALVES), batches)
    train(first, batches[:3])
    second.alg.load_state_dict(first.alg.state_dict())
    second.load_state_dict(first.state_dict())
    found = train(second, batches[3:])
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("uncompiled")
def test_a_resumed_run_has_the_bits_of_one_that_was_not() -> None:
    batches = [make_batch() for _ in range(6)]
    whole, first, second = (make_double(schedule=HALVES, execution="compile") for _ in range(3))
    expected = train(whole, batches)
    train(first, batches[:3])
    second.alg.load_state_dict(first.alg.state_dict())
    second.load_state_dict(first.state_dict())
    found = train(second, batches[3:])
    torch.testing.assert_close(found[1:], expected[1:], rtol=0, atol=0)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "settings",
    [
        {"optim": partial(torch.optim.SGD, lr=0.1)},
        {"optim": partial(Adam, lr=0.01, amsgrad=True)},
        {"accumulate": 2},
        {"precision": "fp16"},
    ],
    ids=["sgd", "amsgrad", "accumulate", "fp16"],
)
def test_what_no_graph_of_an_update_holds_has_graphs_of_gradients(settings: dict[str, Any]) -> None:
    own: dict[str, Any] = {"optim": ADAM} | settings
    plain, graph = make(**own), make(execution="compile", **own)
    batches = [Example(torch.randn(8, 3), torch.randn(8, 2)) for _ in range(3)]
    torch.testing.assert_close(*(train(each, batches) for each in (plain, graph)), rtol=0, atol=0)
    assert graph.steps.compiled is None
    assert isinstance(graph.steps.accumulation.gradients, CompiledGradients)


class Spare(Regression):
    """Trains a layer that its loss does not use, for which Adam has no state."""

    def __init__(self, optim: Any) -> None:
        super().__init__(make_mlp(), optim=optim)
        self.spare = nn.Linear(1, 1)

    def objectives(self) -> Sequence[Objective]:
        (objective,) = super().objectives()
        return [dataclasses.replace(objective, trains=[self])]


@pytest.mark.usefixtures("uncompiled")
def test_what_no_loss_uses_leaves_graphs_of_gradients() -> None:
    learners = []
    for execution in ("eager", "compile"):
        torch.manual_seed(1)
        learners.append(make_learner(Spare(ADAM), execution=execution))
    batches = [Example(torch.randn(8, 3), torch.randn(8, 2)) for _ in range(4)]
    torch.testing.assert_close(*(train(each, batches) for each in learners), rtol=0, atol=0)
    assert learners[1].steps.compiled is None
    assert isinstance(learners[1].steps.accumulation.gradients, CompiledGradients)


class Printing(Regression):
    """Looks at a number, which breaks a graph."""

    def loss(self, batch: Example, noise: Any) -> Loss:
        value = (self.network(batch.obs) - batch.target).square().mean()
        return Loss(value if value.item() > 0 else 2 * value)


def test_what_cannot_be_compiled_is_trained_eagerly_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compile: Callable[..., Any] = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compile, backend="eager"))
    learners = []
    for execution in ("eager", "compile"):
        torch.manual_seed(1)
        learners.append(make_learner(Printing(make_mlp(), optim=ADAM), execution=execution))
    batches = [Example(torch.randn(8, 3), torch.randn(8, 2)) for _ in range(4)]
    with caplog.at_level(logging.WARNING, "research.training.gradient"):
        found = [train(learner, batches) for learner in learners]
    torch.testing.assert_close(*found, rtol=0, atol=0)
    (message,) = (each for each in caplog.messages if "is trained eagerly" in each)
    assert message.startswith("network is trained eagerly, for torch.compile cannot: ")


@pytest.mark.usefixtures("uncompiled")
def test_a_schedule_of_more_than_the_rate_is_followed() -> None:
    cycle = partial(OneCycleLR, max_lr=0.05, total_steps=60)  # which moves Adam's betas, too
    batches = [make_batch() for _ in range(8)]
    learners = [make_double(schedule=cycle, execution=each) for each in ("eager", "compile")]
    torch.testing.assert_close(*(train(each, batches) for each in learners), rtol=1e-9, atol=1e-11)
    assert learners[1].steps.compiled is None


def test_many_sizes_of_batches_end_the_graphs_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compile: Callable[..., Any] = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compile, backend="eager"))
    batches = [make_batch(size) for size in range(2, 15)]
    learners = [make_double(execution=execution) for execution in ("eager", "compile")]
    with caplog.at_level(logging.WARNING, "research.training"):
        found = [train(learner, batches) for learner in learners]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
    assert (learners[1].steps.compiled, learners[1].steps.accumulation.gradients) == (None, None)
    (message,) = (each for each in caplog.messages if "from now on" in each)
    assert message.startswith("updates run eagerly from now on: more than eight sizes of batches")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("settings", [{}, {"precision": "bf16", "ema_decay": 0.9}], ids=str)
def test_compiled_updates_are_eager_ones_to_rounding(settings: dict[str, Any]) -> None:
    optim = partial(AdamW, lr=0.01, eps=1e-3, weight_decay=0.1, fused=True)
    learners = []
    for execution in ("eager", "compile"):
        torch.manual_seed(1)
        learners.append(make(make_cnn(), optim=optim, execution=execution, **settings))
    images = [Example(torch.randn(size, 1, 4, 4), torch.randn(size, 2)) for size in (9, 9, 7, 9)]
    tolerance = {"rtol": 2e-2, "atol": 2e-3} if settings else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(*(train(each, images) for each in learners), **tolerance)
    assert learners[1].steps.compiled is not None
