"""Runs that are measured in epochs, end early, and process what they have seen as a whole."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from research.algs.base import Metrics
from research.errors import UserError
from research.processors.base import Identity
from research.processors.chain import Chain
from research.training.saving.checkpoint import load_checkpoint
from tests.commands import train
from tests.training.test_trainer import (
    SPACES,
    checkpoint_step,
    kill,
    logged,
    make_online,
    make_trainer,
    steps,
)
from tests.training.toys import ACTION_SPACE, ADAM, OBS_SPACE, Points, Regression

ERROR: Any = {"metric": "eval/error", "mode": "min"}


class Scripted(Regression):
    """Its validation errors are told in advance; the first of a new run is only tried."""

    def __init__(self, errors: list[float]) -> None:
        super().__init__(optim=ADAM)
        self.errors = iter(errors)

    def validate(self, batch: tuple[Tensor, Tensor]) -> Metrics:
        if len(batch[0]) == 3:  # the first of the two validation batches
            self.error = next(self.errors)
        return {"error": torch.tensor(self.error)}


def make(folder: Path, errors: list[float] | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    alg = Regression() if errors is None else Scripted(errors)
    options = {"dataset": Points(), "log_every": 5, "eval_every": None, **ERROR, **options}
    return make_trainer(folder, alg, options.pop("dataset"), SPACES, **options)


def test_an_epoch_shows_every_batch_once_and_ends_with_an_evaluation(tmp_path: Path) -> None:
    trainer = make(tmp_path, total_epochs=3)
    trainer.train()
    assert trainer.step == 15
    assert steps(tmp_path / "eval.csv") == [5, 10, 15]
    assert json.loads((tmp_path / "status.json").read_text())["total_steps"] == 15


@pytest.mark.parametrize(
    ("errors", "end", "best"),
    [([0.0, 3.0, 2.0, 2.5, 2.2, 1.0], 20, 2.0), ([0.0, 3.0, 2.0, 2.5, 1.9, 1.95, 1.0], 30, 1.0)],
)
def test_a_run_ends_when_nothing_better_came_for_some_evaluations(
    tmp_path: Path, errors: list[float], end: int, best: float
) -> None:
    trainer = make(tmp_path, errors, total_epochs=6, patience=2)
    assert trainer.train() == best
    assert trainer.step == checkpoint_step(tmp_path, "last") == end


def test_patience_counts_on_in_a_resumed_run_and_an_ended_one_stays_so(tmp_path: Path) -> None:
    kill(make(tmp_path, [0.0, 3.0, 4.0, 5.0], total_epochs=9, patience=2), at=8)
    trainer = make(tmp_path, [4.0, 5.0, 0.0], total_epochs=9, patience=2)
    trainer.train()
    assert trainer.step == 15
    again = make(tmp_path, [0.0], total_epochs=9, patience=2)
    assert again.train() == 3.0
    assert again.step == 15


def test_a_metric_that_validation_lacks_is_told_before_the_first_update(tmp_path: Path) -> None:
    trainer = make(tmp_path, total_epochs=3, metric="eval/eror")
    with pytest.raises(UserError, match=r"metric=eval/eror .*; did you mean 'eval/error'\?$"):
        trainer.train()
    assert trainer.step == trainer.learner.updates == 0


def test_fewer_epochs_than_there_were_are_refused(tmp_path: Path) -> None:
    make(tmp_path, total_epochs=3).train()
    with pytest.raises(UserError, match=r"total_epochs=2 \(10 steps\) is below the 15 steps"):
        make(tmp_path, total_epochs=2).train()


def test_the_highest_loss_is_never_the_best(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the best eval/loss is the lowest; set it to min"):
        make(tmp_path, total_epochs=3, metric="eval/loss", mode="max")


class Shift(Identity):
    """Subtracts the mean of all training inputs, which it is told once."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__(OBS_SPACE, ACTION_SPACE)
        self.register_buffer("mean", torch.zeros(1))
        self.calls = 0

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        assert not self.training
        self.calls += 1
        self.mean.fill_(torch.cat([x for x, _ in batches]).mean())

    def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        assert self.calls or self.mean > 0, "the run began without"
        return batch[0] - self.mean, batch[1]


class Listed(Points):
    """Points whose training examples can be gone through."""

    def training_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.tensor([[0.25], [0.5]]), torch.zeros(2, 1)
        yield torch.tensor([[0.75]]), torch.zeros(1, 1)


def test_a_processor_sees_all_training_batches_once_and_not_again_when_resumed(
    tmp_path: Path,
) -> None:
    whole = make(tmp_path / "whole", total_epochs=4, processor=Shift(), dataset=Listed())
    whole.train()
    assert whole.processor.calls == 1
    assert whole.processor.mean.item() == 0.5
    kill(make(tmp_path / "a", total_epochs=4, processor=Shift(), dataset=Listed()), at=8)
    resumed = make(tmp_path / "a", total_epochs=4, processor=Shift(), dataset=Listed())
    resumed.train()
    assert resumed.processor.calls == 0
    assert logged(tmp_path / "a") == logged(tmp_path / "whole")


def test_every_link_of_a_chain_sees_all_training_batches(tmp_path: Path) -> None:
    chain = Chain(OBS_SPACE, ACTION_SPACE, processors=[lambda *_: Shift(), lambda *_: Shift()])
    make(tmp_path, total_epochs=1, processor=chain, dataset=Listed()).fit_processor()
    assert [link.mean.item() for link in chain.links if isinstance(link, Shift)] == [0.5, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of total_steps and total_epochs must be a number .*, got None and None"),
        ({"total_steps": 5, "total_epochs": 1}, "and the other null, got 5 and 1"),
    ],
)
def test_lengths_that_cannot_be_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_epochs": 2}, "total_epochs needs a dataset with epochs, but a ReplayBuffer"),
        (
            {"total_steps": 20, "eval_every": None},
            "evaluation.every=null needs a dataset with epochs",
        ),
    ],
)
def test_epochs_of_a_replay_buffer_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_online(tmp_path, **options)


def test_the_same_seed_gives_the_same_weights_however_many_processes_read(tmp_path: Path) -> None:
    cases = {
        "first": ["seed=3"],
        "again": ["seed=3"],
        "workers": ["seed=3", "dataset.num_workers=2"],
        "other": ["seed=4"],
    }
    common = ("alg=classification", "processor=augment", "network.channels=[4,8]")
    common += ("network.dropout=0.1", "alg.mixup_alpha=0.2", "trainer.total_epochs=2")
    runs = {name: train(tmp_path / name, *common, *case) for name, case in cases.items()}
    weights = {}
    for name, run in runs.items():
        run.join(120)
        assert run.exitcode == 0, (tmp_path / f"{name}.txt").read_text()
        weights[name] = load_checkpoint(tmp_path / name / "checkpoints" / "last").weights["alg"]
    for key, value in weights["first"].items():
        assert torch.equal(value, weights["again"][key])
        assert torch.equal(value, weights["workers"][key])
    assert not torch.equal(value, weights["other"][key])
