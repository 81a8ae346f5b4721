"""Updates and actions as graphs: those of the eager functions to the bit, or said not to be."""

import dataclasses
import logging
import threading
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau
from torch.utils._python_dispatch import _get_current_dispatch_mode

from research.algs.base import Loss, Objective
from research.algs.regression import Regression
from research.batches import Example
from research.training import execution as executing
from research.training.capture import WARM_UP, Captured, CudaGraphs
from research.training.execution import MANY_UPDATES, Execution, choose_execution
from research.training.learner import Learner
from tests.algs.learning import make_learner
from tests.algs.test_supervised import make, make_batch, make_mlp
from tests.commands import train as start_training
from tests.conftest import small
from tests.training.recording import RecordedGraphs, Recorder, RefusedGraphs
from tests.training.test_trainer import make_online
from tests.training.toys import Toy, make_policy, rows

CPU = torch.device("cpu")
ADAM = partial(torch.optim.Adam, lr=2**-7, fused=True)
"""With a rate that fp32 holds exactly, so that it may be a tensor."""

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
HALVES = partial(LambdaLR, lr_lambda=lambda count: 0.5**count)


def make_both(optim: Any = ADAM, **settings: Any) -> list[Learner]:
    """A learner whose updates are captured, and one whose updates are not."""
    learners = [make(optim=optim, **settings) for _ in range(2)]
    learners[0].steps.graphs = RecordedGraphs()
    return learners


def train(learner: Learner, batches: list[Example]) -> list[Any]:
    """What updates return and lead to; all of them draw other numbers."""
    metrics = []
    for batch in batches:
        torch.manual_seed(learner.updates)
        metrics.append(learner.learn(batch))
    average = learner.average.state_dict() if learner.average else {}
    return [metrics, learner.alg.state_dict(), average]


def replays(learner: Learner) -> int:
    """How often a graph was replayed."""
    assert isinstance(learner.steps.graphs, RecordedGraphs)
    return learner.steps.graphs.replays


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "accumulate": {"accumulate": 3},
    "max_grad_norm": {"max_grad_norm": 0.01},
    "ema_decay": {"ema_decay": 0.9},
    "bf16": {"precision": "bf16"},
    "schedule": {"schedule": HALVES},
    "plateau": {"schedule": partial(ReduceLROnPlateau, patience=0)},
    "sgd": {"optim": SGD},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_captured_updates_are_eager_ones_to_the_bit(settings: dict[str, Any]) -> None:
    batches = [make_batch() for _ in range(WARM_UP + 3)]
    results, learners = [], make_both(**settings)
    for learner in learners:
        results.append([train(learner, batches)])
        for _ in range(2):
            learner.take_score(1.0)
        results[-1].append(train(learner, batches))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert replays(learners[0]) == WARM_UP + 6


def test_each_size_of_a_batch_has_a_graph_of_its_own() -> None:
    batches = [make_batch(size) for _ in range(WARM_UP + 2) for size in (10, 7)]
    learners = make_both()
    torch.testing.assert_close(*(train(each, batches) for each in learners), rtol=0, atol=0)
    assert replays(learners[0]) == 4
    assert learners[0].steps.captured is not None
    assert len(learners[0].steps.captured.recordings) == 2


def test_what_is_resumed_goes_on_to_the_same_numbers() -> None:
    batches = [make_batch() for _ in range(2 * WARM_UP + 4)]
    whole, *_ = make_both(schedule=HALVES)
    (first, _), (second, _) = make_both(schedule=HALVES), make_both(schedule=HALVES)
    expected = train(whole, batches)
    train(first, batches[: WARM_UP + 2])
    second.alg.load_state_dict(first.alg.state_dict())
    second.load_state_dict(first.state_dict())
    found = train(second, batches[WARM_UP + 2 :])
    torch.testing.assert_close(found[1:], expected[1:], rtol=0, atol=0)
    assert replays(second) == 2


def test_results_are_left_alone_by_later_calls() -> None:
    graphs = RecordedGraphs()
    captured = Captured(graphs, "sums")
    found = [captured("sum", lambda x: {"twice": (2 * x,)}, torch.tensor(i)) for i in range(9)]
    assert [each["twice"][0].item() for each in found] == [2 * i for i in range(9)]
    assert graphs.replays == 9 - WARM_UP


class Impatient(Regression):
    """Looks at a number on the device."""

    def loss(self, batch: Example, noise: Any) -> Loss:
        value = (self.network(batch.obs) - batch.target).square().mean()
        return Loss(value if value.item() > 0 else 2 * value)


class Constant(Regression):
    """Gives a metric that no graph changes."""

    def loss(self, batch: Example, noise: Any) -> Loss:
        value = (self.network(batch.obs) - batch.target).square().mean()
        return Loss(value, {"metric": torch.zeros((), device="meta")})


class Broken(Regression):
    """Cannot be captured for another reason."""

    def loss(self, batch: Example, noise: Any) -> Loss:
        mode = _get_current_dispatch_mode()
        if isinstance(mode, Recorder) and not mode.may_wait:
            raise ValueError("no graph of this\nand more")
        return super().loss(batch, noise)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Impatient, "they wait for the GPU, by .item() or the like"),
        (Broken, "no graph of this"),
        (Constant, "a result is on meta, where no graph changes it"),
    ],
)
def test_what_cannot_be_captured_goes_on_eagerly_and_says_so_once(
    kind: type[Regression], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    batches = [make_batch() for _ in range(WARM_UP + 3)]
    results = []
    for graphs in (None, RecordedGraphs()):
        torch.manual_seed(1)
        learner = make_learner(kind(make_mlp(), optim=ADAM))
        learner.steps.graphs = graphs
        results.append(train(learner, batches)[1:])
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert replays(learner) == 0
    (record,) = caplog.records
    assert record.getMessage().startswith(f"updates run eagerly, not as CUDA graphs: {reason}")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"precision": "fp16"}, "precision=fp16 waits for the GPU"),
        (
            {"optim": SGD, "schedule": HALVES},
            "SGD has no option capturable",
        ),
        ({"optim": partial(torch.optim.Adagrad, lr=0.1)}, "Adagrad has no option capturable"),
    ],
    ids=["fp16", "sgd", "adagrad"],
)
def test_settings_that_no_graph_can_have_are_known_before_one_is_made(
    settings: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    learner, _ = make_both(**settings)
    with caplog.at_level(logging.WARNING, "research.training.capture"):
        train(learner, [make_batch()])
    assert caplog.messages == [f"updates run eagerly, not as CUDA graphs: {reason}"]
    train(learner, [make_batch() for _ in range(WARM_UP + 2)])
    assert replays(learner) == 0


def test_a_schedule_of_more_than_the_rate_ends_the_graphs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cycle = partial(OneCycleLR, max_lr=2**-5, total_steps=60)  # which moves Adam's betas, too
    batches = [make_batch() for _ in range(WARM_UP + 5)]
    learners = make_both(schedule=cycle)
    learners[1].steps.graphs = RefusedGraphs()  # rates are tensors there, too
    found = [train(learner, batches) for learner in learners]
    torch.testing.assert_close(*found, rtol=0, atol=0)
    reason = "the schedule changes more than the learning rate"
    assert caplog.messages == 2 * [f"updates run eagerly, not as CUDA graphs: {reason}"]


class Seldom(Regression):
    """Has a step in every second update."""

    def objectives(self) -> Sequence[Objective]:
        return [dataclasses.replace(each, every=2) for each in super().objectives()]


def test_updates_without_a_step_are_no_graphs() -> None:
    learners = []
    for graphs in (None, RecordedGraphs()):
        torch.manual_seed(1)
        learners.append(make_learner(Seldom(make_mlp(), optim=ADAM)))
        learners[-1].steps.graphs = graphs
    batches = [make_batch() for _ in range(2 * WARM_UP + 6)]
    torch.testing.assert_close(*(train(each, batches) for each in learners), rtol=0, atol=0)
    assert replays(learners[1]) == 3


def test_an_optimizer_keeps_its_rate_as_a_number() -> None:
    learner, _ = make_both(schedule=HALVES)
    train(learner, [make_batch() for _ in range(WARM_UP + 3)])
    assert learner.take_metrics()["lr"] == 2**-7 * 0.5 ** (WARM_UP + 3)
    assert learner.descents is not None
    (group,) = learner.descents["network"].optim.param_groups
    assert (group["lr"], group["capturable"]) == (2**-7 * 0.5 ** (WARM_UP + 3), False)


def logged(folder: Path) -> list[Any]:
    """What a run has logged, without the time."""
    paths = [folder / f"{group}.csv" for group in ("train", "eval", "env")]
    found = [row for path in paths if path.exists() for row in rows(path)]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def test_a_run_of_graphs_is_the_run_without(tmp_path: Path) -> None:
    logs, count = [], 0
    for graphs in (RefusedGraphs(), RecordedGraphs()):
        torch.manual_seed(0)
        alg = Toy(optim=ADAM)
        trainer = make_online(tmp_path / type(graphs).__name__, num_envs=2, total_steps=40, alg=alg)
        trainer.learner.steps.graphs = graphs
        trainer.policy.capture(graphs)
        trainer.evaluator.policy.capture(graphs)
        trainer.train()
        count = graphs.replays
        logs.append(logged(trainer.run.folder))
    assert logs[0] == logs[1]
    assert count > 40


class Doubter(Toy):
    """Acts otherwise while it learns."""

    def act(self, obs: Any, step: Tensor, explore: bool) -> Tensor:
        return super().act(obs, step, explore) / (2 if self.training else 1) + step / 2**10


def test_actions_explore_or_not_at_the_step_that_it_is() -> None:
    torch.manual_seed(0)
    alg, graphs = Doubter(), RecordedGraphs()
    plain, graph = make_policy(alg), make_policy(alg)
    graph.capture(graphs)
    for step in range(4 * (WARM_UP + 2)):
        alg.train(step % 4 < 2)
        actions = []
        for each in (plain, graph):
            torch.manual_seed(step)
            obs = np.full((2, 4), step * 2.0**18, np.float32)
            actions.append(each(obs, step=step, explore=step % 2 == 0))
        np.testing.assert_array_equal(*actions)
    assert graphs.replays == 8


class FragileGraphs(RecordedGraphs):
    """After a capture that fails, a replay of any graph would fail too."""

    def capture(self, function: Any) -> Any:
        try:
            return super().capture(function)
        except ValueError:
            self.is_broken = True
            raise


def test_after_a_failed_capture_no_graph_is_replayed(caplog: pytest.LogCaptureFixture) -> None:
    graphs, numbers = FragileGraphs(), torch.arange(3.0)
    early, late = Captured(graphs, "actions"), Captured(graphs, "updates")

    def double(numbers: Tensor) -> Tensor:
        return numbers * 2

    def fail_when_captured(numbers: Tensor) -> Tensor:
        mode = _get_current_dispatch_mode()
        if isinstance(mode, Recorder) and not mode.may_wait:
            raise ValueError("not this")
        return numbers * 3

    for _ in range(WARM_UP + 2):
        early("key", double, numbers)
    before = graphs.replays
    assert before > 0
    for _ in range(WARM_UP + 2):
        torch.testing.assert_close(late("key", fail_when_captured, numbers), numbers * 3)
        torch.testing.assert_close(early("key", double, numbers), numbers * 2)
    assert graphs.replays == before + WARM_UP
    told = "run eagerly, not as CUDA graphs:"
    assert caplog.messages == [f"updates {told} not this", f"actions {told} another capture failed"]


def test_a_wait_is_of_the_thread_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("get_sync_debug_mode", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)
    graphs = CudaGraphs(CPU)

    def wait() -> int:
        warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        return 1

    def wait_elsewhere() -> int:
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
        return 2

    for _ in range(2):  # not only where it is seen first
        assert graphs.watch(wait) == (1, True)
        assert graphs.watch(wait_elsewhere) == (2, False)
    with pytest.warns(UserWarning, match="^another$"):
        assert graphs.watch(lambda: warnings.warn("another", stacklevel=1)) == (None, False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("alg", ["td3", "sac", "crossq", "drqv2", "dqn", "ppo", "regression"])
def test_on_a_gpu_a_run_of_graphs_is_the_eager_run(alg: str, tmp_path: Path) -> None:
    logs = []
    for execution in ("eager", "graph"):
        folder = tmp_path / execution
        steps = ("total_steps=192", "pace.warmup_steps=40", "evaluation.every=96")
        options = [] if alg in ("ppo", "regression") else [f"trainer.{each}" for each in steps]
        sizes = small(alg, tmp_path, batch_size=32, capacity=400)
        how = ("device=cuda", f"trainer.execution={execution}", "trainer.log_every=8")
        run = start_training(folder, *sizes, *options, *how)
        run.join(120)
        told = folder.with_suffix(".txt").read_text()
        assert run.exitcode == 0, told
        assert "run eagerly" not in told
        logs.append(logged(folder))
    assert logs[0] == logs[1]


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(ValueError, match="execution=graph needs device=cuda, this run is on cpu"):
        make(execution="graph")
    with pytest.raises(
        ValueError, match="graph is of one seed, not of several in a process; try auto"
    ):
        choose_execution("graph", torch.device("cuda"), 1, is_alone=False)


@pytest.mark.parametrize(
    ("device", "updates", "is_alone", "compiler", "chosen"),
    [
        ("cuda", 1, True, False, "graph"),
        ("cuda", MANY_UPDATES, False, True, "eager"),
        ("cpu", MANY_UPDATES, True, True, "compile"),
        ("cpu", MANY_UPDATES, False, True, "compile"),
        ("cpu", MANY_UPDATES - 1, True, True, "eager"),
        ("cpu", MANY_UPDATES, True, False, "eager"),
        ("mps", MANY_UPDATES, True, True, "eager"),
    ],
)
def test_what_is_fast_is_chosen(
    device: str,
    updates: int,
    is_alone: bool,
    compiler: bool,
    chosen: Execution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executing, "has_compiler", lambda: compiler)
    found = choose_execution("auto", torch.device(device), updates, is_alone=is_alone)
    assert found == chosen
    asked: Execution
    for asked in ("eager", "compile"):
        found = choose_execution(asked, torch.device(device), updates, is_alone=is_alone)
        assert found == asked


def test_a_recording_repeats_what_was_computed_as_a_cuda_graph_does() -> None:
    weight, x = torch.ones(3), torch.arange(3.0)

    def function() -> Tensor:
        weight.add_(x)
        return (weight * torch.rand(3)).sum()

    torch.manual_seed(3)
    draws = torch.rand(2, 3)
    torch.manual_seed(3)
    result, replay = RecordedGraphs().capture(function)
    assert weight.tolist() == [1, 1, 1]
    replay()
    assert weight.tolist() == [1, 2, 3]
    assert result.item() == (weight * draws[0]).sum().item()
    x.fill_(1)
    replay()
    assert weight.tolist() == [2, 3, 4]
    assert result.item() == (weight * draws[1]).sum().item()
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        RecordedGraphs().capture(lambda: weight.add_(1).sum().item())
    assert weight.tolist() == [2, 3, 4]
