"""Gradients as graphs: the updates of eager ones, whatever else the learner does."""

import logging
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported

from research.algs.base import Loss, Objective
from research.algs.regression import Regression
from research.batches import Example
from research.training import gradient
from research.training.gradient import OF_CODE, CompiledGradients, choose_guards, pure_gradient
from research.training.learner import Learner
from tests.algs.learning import make_learner
from tests.algs.test_supervised import make, make_batch, make_cnn, make_mlp, weights

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler"
)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Lets torch.compile return the function that it gets; the options of its calls."""
    calls = []

    def compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        calls.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    return calls


def assert_same_updates(
    *learners: Learner, batches: list[Example], rtol: float, atol: float
) -> None:
    """The same metrics, weights, statistics and averages after every one of these updates."""
    for batch in batches:
        rows, states = [], []
        for learner in learners:
            torch.manual_seed(0)
            rows.append(learner.learn(batch))
            average = learner.average.state_dict() if learner.average else {}
            states.append((learner.alg.state_dict(), average))
        for found in (rows, states):
            torch.testing.assert_close(*found, rtol=rtol, atol=atol)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"accumulate": 3},
    {"max_grad_norm": 0.01},
    {"ema_decay": 0.9},
    {"precision": "bf16"},
    {"precision": "fp16", "accumulate": 3, "max_grad_norm": 0.01},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_as_one_function_a_gradient_is_what_backward_gives_to_the_bit(
    uncompiled: list[Any], settings: dict[str, Any]
) -> None:
    plain, graph = make(**settings), make(execution="compile", **settings)
    batches = [make_batch() for _ in range(3)] + [make_batch(7)]
    assert_same_updates(plain, graph, batches=batches, rtol=0, atol=0)
    options = {"guard_filter_fn": choose_guards}
    assert uncompiled == [{"fullgraph": True, "dynamic": False, "options": options}]


def test_statistics_move_as_they_do_eagerly(uncompiled: list[Any]) -> None:
    learners = []
    for execution in ("eager", "compile"):
        torch.manual_seed(1)
        learners.append(make(make_cnn(), execution=execution))
    images = [Example(torch.randn(8, 1, 4, 4) + 5, torch.randn(8, 2)) for _ in range(3)]
    assert_same_updates(*learners, batches=images, rtol=0, atol=0)
    assert learners[1].alg.get_buffer("network.stages.1.running_mean").any()
    assert uncompiled


class Forgetful(Regression):
    """Trains a layer that its loss does not use."""

    def __init__(self) -> None:
        super().__init__(make_mlp(), optim=torch.optim.SGD)  # type: ignore[arg-type]
        self.spare = nn.Linear(1, 1)

    def loss(self, batch: Example, noise: Any) -> Loss:
        error = (self.network(batch.obs) - batch.target).square().mean()
        return Loss(error, {"error": error}, result={"obs": 2 * self.network(batch.obs)})


def test_a_pure_gradient_is_of_all_that_is_trained_and_keeps_nothing() -> None:
    alg, batch = Forgetful(), make_batch()
    objective = Objective(name="all", loss=alg.loss, trains=[alg], optim=torch.optim.SGD)
    trained = {name: each.detach().clone() for name, each in alg.named_parameters()}
    fixed = {"network.mlp.0.bias": trained.pop("network.mlp.0.bias") + 1}
    pure = pure_gradient(alg, objective, "fp32", torch.device("cpu"))
    gradients, loss = pure(trained, fixed, (batch, None), torch.tensor(2.0))
    with torch.no_grad():
        alg.get_parameter("network.mlp.0.bias").add_(1)
    value, metrics, result, _ = alg.loss(batch, None)
    (2 * value).backward()
    for name, found in gradients.items():
        expected = alg.get_parameter(name).grad
        assert torch.equal(found, torch.zeros_like(found) if expected is None else expected), name
    assert set(gradients) == set(trained)
    assert set(loss) == {"value", "metrics", "result"}
    for mine, own in zip(
        (loss["value"], loss["metrics"]["error"], loss["result"]["obs"]),
        (value, metrics["error"], result["obs"]),
        strict=True,
    ):
        assert torch.equal(mine, own)
        assert not mine.requires_grad


class Scaled(Regression):
    """Its loss reads a number."""

    scale = 1.0

    def loss(self, batch: Example, noise: Any) -> Loss:
        return Loss(self.scale * (self.network(batch.obs) - batch.target).square().mean())


def test_what_a_loss_reads_may_change_and_so_may_the_size_of_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[str] = []

    def choose(guards: Sequence[Any]) -> list[bool]:
        kept.extend(guard.guard_type for guard in guards)
        return choose_guards(guards)

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compile, backend="eager"))
    monkeypatch.setattr(gradient, "choose_guards", choose)
    learners = []
    for execution in ("eager", "compile"):
        torch.manual_seed(1)
        alg = Scaled(make_mlp(), optim=partial(torch.optim.SGD, lr=0.1))
        learners.append(make_learner(alg, execution=execution))
    for scale, size in ((1.0, 9), (2.0, 9), (2.0, 7), (1.0, 9), (3.0, 7)):
        monkeypatch.setattr(Scaled, "scale", scale)
        assert_same_updates(*learners, batches=[make_batch(size)], rtol=0, atol=0)
    assert set(kept) > OF_CODE & {"TYPE_MATCH", "MODULE_MATCH", "DICT_KEYS_MATCH"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unsupported("no C++ compiler\nand more", case_name="compiler"), "no C++ compiler"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
    ],
    ids=["compiler", "disk"],
)
def test_what_cannot_be_compiled_goes_on_eagerly_and_says_so_once(
    error: Exception,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            raise error

        return call

    monkeypatch.setattr(torch, "compile", compile)
    plain, graph = make(), make(execution="compile")
    with caplog.at_level(logging.WARNING):
        batches = [make_batch() for _ in range(3)]
        assert_same_updates(plain, graph, batches=batches, rtol=0, atol=0)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"network is trained eagerly, for torch.compile cannot: {reason}"
    )


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("settings", SETTINGS[::5], ids=str)
def test_compiled_gradients_are_eager_ones_to_rounding(settings: dict[str, Any]) -> None:
    learners = []
    for execution in ("eager", "compile"):
        torch.manual_seed(1)
        learners.append(make(make_cnn(), execution=execution, **settings))
    images = [Example(torch.randn(size, 1, 4, 4), torch.randn(size, 2)) for size in (9, 9, 7)]
    tolerance = {"rtol": 1e-2, "atol": 1e-3} if settings else {"rtol": 1e-5, "atol": 1e-6}
    assert_same_updates(*learners, batches=images, **tolerance)
    assert isinstance(gradients := learners[1].steps.accumulation.gradients, CompiledGradients)
    assert all(gradients.graphs.values())
    assert set(weights(learners[1])) == set(weights(learners[0]))
