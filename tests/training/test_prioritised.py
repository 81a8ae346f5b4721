"""Errors on their way from a loss to a prioritised dataset, and what cannot have one."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from research.algs.base import Algorithm, Loss, Objective
from research.batches import WeightedTransition
from research.config import build
from research.datasets.replay.buffer import ReplayBuffer
from research.datasets.replay.prioritised_rows import PrioritisedRows
from research.training.learner import Learner, check_objectives
from research.training.meter import Phases
from research.training.requirements import check_parts
from tests.algs.learning import make_learner
from tests.algs.test_contract import make as make_parts
from tests.conftest import Load
from tests.datasets.replay.test_buffer import Spaces, fill


class Errors(Algorithm):
    """A line through observations, whose error is what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 1)

    def objectives(self) -> list[Objective]:
        optim = partial(torch.optim.SGD, lr=0.1)
        return [
            Objective(
                name="line", loss=self.loss, trains=[self.line], optim=optim, prioritises=True
            )
        ]

    def loss(self, batch: WeightedTransition, drawn: None) -> Loss:
        error = self.line(batch.obs).squeeze(1)
        return Loss((batch.weight * error.square()).mean(), priority=error)


def make_buffer() -> ReplayBuffer:
    env = Spaces(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)), 1, {})
    buffer = ReplayBuffer(
        env,
        0,
        capacity=100,
        batch_size=7,
        discount=0.9,
        n_step=1,
        storage="ram",
        device="cpu",
        priorities=partial(PrioritisedRows, alpha=1.0, beta=0.25, epsilon=1e-3),
    )
    fill(buffer, 60)
    return buffer


def update(learner: Learner, count: int) -> None:
    for _ in range(count):
        learner.update(0, Phases(), can_prepare=True)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_errors_reach_the_dataset_detached_and_in_order(
    monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    buffer, alg, told = make_buffer(), Errors(), []
    monkeypatch.setattr(buffer, "prioritise", told.append)
    learner = make_learner(alg, buffer, accumulate=accumulate)
    batches: list[Any] = []
    learner.processor.register_forward_hook(lambda *call: batches.append(call[2]))
    line = [parameter.clone() for parameter in alg.parameters()]
    update(learner, 1)
    (errors,) = told
    assert not errors.requires_grad
    expected = nn.functional.linear(batches[0].obs, *line).squeeze(1)
    torch.testing.assert_close(errors, expected)


def test_the_dataset_draws_by_the_errors_of_the_update_before() -> None:
    buffer = make_buffer()
    learner = make_learner(Errors(), buffer)
    update(learner, 1)
    rows = buffer._priorities._changes[-1][0]
    errors = torch.cat(learner.steps.priorities).double().abs() + 1e-3
    buffer.sample()
    stored = torch.from_numpy(buffer._priorities._tree.values[rows])
    assert torch.equal(stored, errors)


def test_the_share_of_the_run_is_told_before_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, told = make_buffer(), []
    monkeypatch.setattr(buffer, "anneal", told.append)
    update(make_learner(Errors(), buffer, total_updates=4), 4)
    assert told == [0.0, 0.25, 0.5, 0.75]


def test_errors_are_not_waited_for_before_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, waits = make_buffer(), []
    update(make_learner(Errors(), buffer), 1)
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: waits.append(0) or tensor)
    fill(buffer, 10)
    assert not waits
    buffer.sample()
    assert waits == [0]


def test_a_gpu_prefetches_no_batch_of_a_prioritised_dataset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer = make_buffer()
    learner = make_learner(Errors(), buffer)
    settings: Any = {"total_updates": 1, "schedule": None, "max_grad_norm": None}
    settings |= {"precision": "fp32", "accumulate": 1, "ema_decay": None, "execution": "eager"}
    parts = Errors(), learner.processor, buffer, torch.device("cuda")
    monkeypatch.setattr("research.training.learner.make_step", lambda device: torch.zeros(()))
    for prefetch in (None, False):
        assert Learner(*parts, prefetch=prefetch, **settings).preparing is None
    with pytest.raises(
        ValueError, match=r"prefetch gathers a batch before.* trainer.prefetch=null"
    ):
        Learner(*parts, prefetch=True, **settings)


def test_two_objectives_with_priorities_are_refused() -> None:
    one, two = (Errors().objectives()[0] for _ in range(2))
    two = Objective(**{**vars(two), "name": "other"})
    with pytest.raises(ValueError, match=r"one objective may give priorities.*'line', 'other'"):
        check_objectives([one, two])


def test_an_algorithm_without_priorities_is_refused(load: Load) -> None:
    cfg = load("alg=td3", "dataset=prioritised", "dataset.capacity=400")
    env, processor, alg, _, _ = make_parts(load("alg=td3", "dataset.capacity=400"))
    with pytest.raises(ValueError, match=r"TD3 gives no priorities,.*; try dataset=replay, or"):
        check_parts(alg, processor, build(cfg.dataset, env, 0), env, collects=True)
    cfg = load("alg=dqn", "dataset=prioritised", "dataset.capacity=400")
    env, processor, alg, _, _ = make_parts(cfg)
    dataset = build(cfg.dataset, env, 0)
    assert np.isclose(dataset._make_starts.keywords["alpha"], 0.6)
    check_parts(alg, processor, dataset, env, collects=True)
