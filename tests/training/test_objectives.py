"""Steps down the objectives of an algorithm: their order, periods, parts, copies and averages."""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR

from research.algs.base import Algorithm, Loss, Metrics, Objective, PolyakCopy, Stop
from research.algs.targets import frozen_copy
from research.training.accumulation import cut
from tests.algs.learning import make_learner

SGD = partial(torch.optim.SGD, lr=0.1)


class Line(Algorithm):
    """Two slopes of a batch's mean, each with an objective of its own."""

    def __init__(self, **changes: dict[str, Any]) -> None:
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.tensor(value)) for value in (2.0, 3.0))
        self.changes = changes
        self.seen: list[Any] = []

    def objectives(self) -> Sequence[Objective]:
        shared: dict[str, Any] = {"optim": SGD}
        up = shared | {"name": "up", "loss": self.up_loss, "trains": [self.up]}
        down = shared | {"name": "down", "loss": self.down_loss, "trains": [self.down]}
        return [
            Objective(**(up | self.changes.get("up", {}))),
            Objective(**(down | self.changes.get("down", {}))),
        ]

    def act(self, obs: Tensor, step: Tensor, explore: bool) -> Tensor:
        return obs * self.up

    def up_loss(self, batch: Tensor, noise: Any, *reused: Tensor) -> Loss:
        self.seen.append(("up", self.up.item(), self.down.item(), *reused))
        result = self.up * self.down * batch
        return Loss(result.mean(), result=result)

    def down_loss(self, batch: Tensor, noise: Any, *reused: Tensor) -> Loss:
        self.seen.append(("down", self.up.item(), self.down.item(), *reused))
        value = self.up * self.down * batch
        return Loss((value + sum(reused)).mean(), {"reused": sum(reused, torch.zeros(1)).mean()})


BATCH = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])


def test_every_objective_moves_its_own_parameters_from_where_the_ones_before_led() -> None:
    alg = Line()
    metrics = make_learner(alg).learn(BATCH)
    assert metrics["up_loss"].item() == pytest.approx(2 * 3 * 3)
    assert alg.up.item() == pytest.approx(up := 2 - 0.1 * 3 * 3)
    assert metrics["down_loss"].item() == pytest.approx(up * 3 * 3)
    assert alg.down.item() == pytest.approx(3 - 0.1 * up * 3)


def test_an_objective_has_a_step_in_every_nth_update() -> None:
    alg = Line(up={"every": 2}, down={"every": 3})
    learner = make_learner(alg)
    metrics = [set(learner.learn(BATCH)) - {"reused"} for _ in range(6)]
    up, down = {"up_loss"}, {"down_loss"}
    assert metrics == [set(), up, down, up, set(), up | down]
    assert [name for name, *_ in alg.seen] == ["up", "down", "up", "up", "down"]


@pytest.mark.parametrize("num_parts", [1, 2, 5])
def test_a_reused_result_is_of_this_update_and_of_the_part_and_detached(num_parts: int) -> None:
    alg = Line(down={"reuses": "up"})
    learner = make_learner(alg, accumulate=num_parts)
    for _ in range(2):
        alg.seen.clear()
        up, down = alg.up.item(), alg.down.item()
        metrics = learner.learn(BATCH)
        reused = [tensor for name, *_, tensor in alg.seen if name == "down"]
        torch.testing.assert_close(torch.cat(reused), up * down * BATCH)
        assert not any(tensor.requires_grad for tensor in reused)
        assert metrics["reused"].item() == pytest.approx(up * down * 3)
        assert alg.down.item() == pytest.approx(down - 0.1 * alg.up.item() * 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"down": {"name": "up"}}, "two objectives are named up"),
        ({"down": {"reuses": "side"}}, r"down reuses the result of side, .*: \['up'\]$"),
        ({"up": {"reuses": "down"}}, r"up reuses the result of down, .*: \[\]$"),
        ({"up": {"reuses": "up"}}, "up reuses the result of up"),
        ({"down": {"reuses": "up"}, "up": {"every": 2}}, "a step in all of its updates"),
        ({"down": {"reuses": "up", "every": 3}, "up": {"every": 2}}, "a step in all of its"),
        ({"down": {"trains": [nn.ReLU()]}}, "the objective down has no parameter to train"),
        ({"down": {"trains": [frozen_copy(nn.Linear(1, 1))]}}, "down has no parameter to train"),
    ],
)
def test_objectives_that_do_not_go_together_are_refused(
    changes: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_learner(Line(**changes)).learn(BATCH)


def test_a_rarer_objective_may_reuse_what_is_computed_in_all_of_its_updates() -> None:
    alg = Line(up={"every": 2}, down={"reuses": "up", "every": 4})
    learner = make_learner(alg)
    assert ["down_loss" in learner.learn(BATCH) for _ in range(4)] == [False] * 3 + [True]


def test_a_batch_of_which_an_objective_was_not_due_leaves_its_schedule_in_time() -> None:
    alg = Line(down={"every": 4})
    learner = make_learner(alg, schedule=partial(StepLR, step_size=2, gamma=0.5))
    for _ in range(3):
        learner.learn(BATCH)
    assert learner.take_metrics() == {"up_lr": 0.05, "down_lr": 0.05}


@pytest.mark.parametrize("num_parts", [1, 3])
def test_an_objective_ends_alone_where_a_metric_of_the_batch_exceeds_its_bound(
    num_parts: int,
) -> None:
    up = {"optim": partial(torch.optim.SGD, lr=0.1, maximize=True)}
    alg = Line(up=up, down={"reuses": "up", "stop": Stop("reused", above=18.2)})
    learner = make_learner(alg, accumulate=num_parts)
    found = []
    for _ in range(3):
        before = alg.up.item(), alg.down.item()
        metrics = learner.learn(BATCH)
        found.append((alg.up.item() > before[0], alg.down.item() != before[1], "reused" in metrics))
    assert found == [(True, True, True), (True, False, True), (True, False, False)]
    assert metrics.keys() == {"up_loss"}


def test_copies_move_after_the_steps_of_every_nth_update() -> None:
    alg = Line()
    alg.net = nn.Linear(1, 1, bias=False)
    alg.target = nn.Linear(1, 1, bias=False)
    alg.copies = lambda: [PolyakCopy(alg.target, alg.net, 0.25, every=2)]  # type: ignore
    learner = make_learner(alg)
    for value in (alg.net.weight, alg.target.weight):
        nn.init.zeros_(value)
    nn.init.ones_(alg.net.weight)
    seen = []
    for _ in range(4):
        learner.learn(BATCH)
        seen.append(alg.target.weight.item())
    assert seen == [0, 0.25, 0.25, 0.4375]


def test_augmenting_and_drawing_come_once_before_a_batch_is_cut() -> None:
    class Noisy(Line):
        def augment(self, batch: Tensor) -> Tensor:
            return batch + torch.randn(())

        def draw(self, batch: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
            return torch.randperm(len(batch)), step

        def up_loss(self, batch: Tensor, noise: Any, *reused: Tensor) -> Loss:
            self.seen.append((batch, *noise))
            return super().up_loss(batch, None)

    whole, parts = Noisy(), Noisy()
    for alg, accumulate in ((whole, 1), (parts, 3)):
        torch.manual_seed(5)
        learner = make_learner(alg, accumulate=accumulate)
        learner.step.fill_(7)
        learner.learn(BATCH)
    cuts = [each for each in parts.seen if isinstance(each[0], Tensor)]
    assert [len(batch) for batch, *_ in cuts] == [1, 2, 2]
    assert [step.item() for *_, step in cuts] == [7] * 3
    for index in range(2):
        assert torch.equal(torch.cat([each[index] for each in cuts]), whole.seen[0][index])


def test_parts_are_in_order_none_empty_and_of_nearly_equal_size() -> None:
    batch = {"x": torch.arange(7), "share": torch.tensor(0.5)}, None
    parts = list(cut(batch, 3))
    assert [part["x"].tolist() for part, _ in parts] == [[0, 1], [2, 3], [4, 5, 6]]
    assert all(part["share"] == 0.5 for part, _ in parts)
    assert [len(part["x"]) for part, _ in cut(batch, 9)] == [1] * 7


class Hopping(Line):
    """Makes its updates itself: one optimizer's step, then the other's, on one loss."""

    def update(self, batch: Any, step: Tensor, optimizers: Mapping[str, Optimizer]) -> Metrics:
        loss = (self.up + 2 * self.down) * batch.mean()
        for optim in optimizers.values():
            optim.zero_grad()
        loss.backward()
        for optim in optimizers.values():
            optim.step()
        self.seen.append((step.item(), list(optimizers)))
        return {"loss": loss.detach()}


def test_an_update_of_its_own_gets_step_and_optimizers_by_name() -> None:
    alg = Hopping()
    learner = make_learner(alg, schedule=partial(StepLR, step_size=1, gamma=0.5), max_grad_norm=3.0)
    learner.step.fill_(40)
    metrics = [learner.learn(BATCH)["loss"].item() for _ in range(2)]
    assert alg.seen == [(40, ["up", "down"])] * 2
    assert learner.take_metrics() == {"up_lr": 0.025, "down_lr": 0.025}
    # gradients are 3 and 6, of which the second is bounded; rates are 0.1 and 0.05
    assert (alg.up.item(), alg.down.item()) == pytest.approx((2 - 0.45, 3 - 0.45))
    assert metrics == pytest.approx([24.0, 24 - 3 * 0.9])


def test_an_update_of_its_own_is_averaged_and_resumes() -> None:
    def make() -> tuple[Hopping, Any]:
        alg = Hopping(up={"optim": partial(torch.optim.Adam, lr=0.1)})
        return alg, make_learner(alg, ema_decay=0.75, schedule=partial(StepLR, step_size=3))

    alg, learner = make()
    learner.learn(BATCH)
    assert learner.average.up.item() == pytest.approx(0.75 * 2 + 0.25 * alg.up.item())
    for _ in range(2):
        learner.learn(BATCH)
    twin, other = make()
    twin.load_state_dict(alg.state_dict())
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for each in (learner, other):
        each.learn(-BATCH)
    assert (twin.up.item(), twin.down.item()) == (alg.up.item(), alg.down.item())
    assert other.updates == 4


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"precision": "bf16"}, "trainer.precision=bf16"),
        ({"accumulate": 2}, "trainer.accumulate=2"),
        ({"execution": "compile"}, "trainer.execution=compile"),
        ({}, "several ranks"),
    ],
)
def test_what_needs_objectives_is_refused_for_an_update_of_its_own(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], setting: str
) -> None:
    monkeypatch.setattr("research.training.execution.is_parallel", lambda: not settings)
    message = f"^{setting} needs objectives, but Hopping has an update of its own$"
    with pytest.raises(ValueError, match=message):
        make_learner(Hopping(), **settings)
