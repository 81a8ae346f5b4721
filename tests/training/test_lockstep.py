"""Runs in lockstep: each as it is alone, whatever becomes of the others."""

import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from research.errors import Preempted
from research.signals import StopRequest
from research.training.lockstep import Seat, run_in_lockstep
from research.training.saving.checkpoint import load_checkpoint
from research.training.trainer import Trainer
from tests.conftest import Load, algs, collects, small
from tests.training.parts import build_trainer
from tests.training.toys import rows

SEEDS = ("0", "1", "2")
ALWAYS = ("trainer.evaluation.episodes=1", "logger.trackers=[csv]", "network.hidden_dims=[16]")
TD3 = (
    *("alg=td3", "env=pendulum", "env.action_repeat=5", "trainer.total_steps=240"),
    *("trainer.pace.warmup_steps=40", "trainer.log_every=40", "trainer.checkpoints.every=80"),
    *("trainer.evaluation.every=120", "dataset.capacity=300", "dataset.batch_size=16", *ALWAYS),
)


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``execution=compile`` compute all gradients at once, but compile nothing."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def together(
    folder: Path,
    load: Load,
    *overrides: str,
    prepare: Callable[..., None] | None = None,
    seeds: Sequence[str] = SEEDS,
) -> list[Seat]:
    """Train a run for each seed in lockstep."""

    def task(seat: Seat) -> float:
        own = (f"seed={seat.name}", "trainer.execution=compile")
        trainer = build_trainer(folder / seat.name, load(*overrides, *own), seat)
        if prepare is not None:
            prepare(trainer)
        return trainer.train()

    folder.mkdir(exist_ok=True)
    return run_in_lockstep(task, seeds, StopRequest())


def alone(folder: Path, load: Load, *overrides: str, seeds: Sequence[str] = SEEDS) -> None:
    """Train a run for each seed, one after the other."""
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        build_trainer(folder / seed, load(*overrides, f"seed={seed}")).train()


def logged(folder: Path) -> dict[str, list[dict[str, float]]]:
    """All rows but for the times of this machine."""
    names = ("train.csv", "env.csv", "eval.csv")
    return {
        name: [{**row, "seconds": 0} for row in rows(folder / name)]
        for name in names
        if (folder / name).exists()
    }


def weights(folder: Path) -> dict[str, Any]:
    return load_checkpoint(folder / "checkpoints" / "last").weights["alg"]


def assert_same(one: Path, other: Path, *, rtol: float, atol: float) -> None:
    """Whether two runs have the same rows and the same last weights."""
    torch.testing.assert_close(weights(one), weights(other), rtol=rtol, atol=atol)
    found, expected = logged(one), logged(other)
    assert set(found) == set(expected)
    for name, both in found.items():
        for row, wanted in zip(both, expected[name], strict=True):
            for key, value in row.items():
                close = pytest.approx(wanted[key], rel=rtol, abs=atol)
                assert value == close, (name, key)


EXACT = {"rtol": 0.0, "atol": 0.0}
ROUNDED = {"rtol": 1e-3, "atol": 1e-4}


def test_each_run_is_the_one_that_it_is_alone(tmp_path: Path, load: Load) -> None:
    seats = together(tmp_path / "together", load, *TD3)
    alone(tmp_path / "alone", load, *TD3)
    for name in SEEDS:
        one, other = (tmp_path / how / name for how in ("together", "alone"))
        assert_same(one, other, **ROUNDED)
        sizes = [(f / "checkpoints" / "last" / "weights.pt").stat().st_size for f in (one, other)]
        assert sizes[0] == sizes[1], "a checkpoint holds the weights of its own run alone"
        first, wanted = (logged(folder)["env.csv"][0] for folder in (one, other))
        assert first == wanted  # random actions and environments are its own
    assert [seat.error for seat in seats] == [None] * 3
    assert len({seat.result for seat in seats}) == 3


def test_what_fails_leaves_the_others_as_they_are(tmp_path: Path, load: Load) -> None:
    def fail_at_100(trainer: Trainer) -> None:
        advance = trainer.advance

        def failing() -> None:
            if trainer.run.seed == 1 and trainer.step == 100:
                raise ValueError("no more")
            advance()

        trainer.advance = failing  # type: ignore[method-assign]

    seats = together(tmp_path / "one fails", load, *TD3, prepare=fail_at_100)
    together(tmp_path / "all", load, *TD3)
    assert [str(seat.error) for seat in seats] == ["None", "no more", "None"]
    for name in ("0", "2"):
        assert_same(tmp_path / "one fails" / name, tmp_path / "all" / name, **EXACT)


@pytest.mark.parametrize(
    ("alg", "behind"), [("td3", ("1",)), ("td3", ("0", "2")), ("td3", SEEDS), ("crossq", ("1",))]
)
def test_runs_go_on_from_different_steps_to_the_same_end(
    tmp_path: Path, load: Load, alg: str, behind: Sequence[str]
) -> None:
    """CrossQ's statistics of batches move with every loss that is computed, its own or not."""
    sizes = {"crossq": ["network.actor_hidden_dims=[16]", "network.critic_hidden_dims=[16]"]}
    task = [each for each in TD3 if alg == "td3" or "hidden_dims" not in each]
    task += [f"alg={alg}", *sizes.get(alg, [])]
    together(tmp_path / "whole", load, *task)
    together(tmp_path / "parts", load, *task, "trainer.total_steps=120")
    for name in behind:  # as if it had been killed before it saved
        folder = tmp_path / "parts" / name / "checkpoints"
        *_, before, newest = sorted(folder.glob("0*"))
        shutil.rmtree(newest)
        (folder / "last").unlink()
        (folder / "last").symlink_to(before.name)
    together(tmp_path / "parts", load, *task)
    for name in SEEDS:
        assert_same(tmp_path / "parts" / name, tmp_path / "whole" / name, **EXACT)


def test_a_signal_ends_all_after_the_step_and_they_go_on(tmp_path: Path, load: Load) -> None:
    def stop_at_100(trainer: Trainer) -> None:
        advance = trainer.advance

        def stopping() -> None:
            if trainer.run.seed == 1 and trainer.step == 100:
                trainer.stop.note(signal.SIGTERM, None)
            advance()

        trainer.advance = stopping  # type: ignore[method-assign]

    seats = together(tmp_path / "stopped", load, *TD3, prepare=stop_at_100)
    assert [type(seat.error) for seat in seats] == [Preempted] * 3
    folders = [tmp_path / "stopped" / name / "checkpoints" / "last" for name in SEEDS]
    assert [load_checkpoint(folder).state["step"] for folder in folders] == [101, 101, 100]
    together(tmp_path / "stopped", load, *TD3)
    together(tmp_path / "whole", load, *TD3)
    for name in SEEDS:
        assert_same(tmp_path / "stopped" / name, tmp_path / "whole" / name, **EXACT)


def test_an_interrupt_ends_all_at_once(tmp_path: Path, load: Load) -> None:
    def interrupt_at_100(trainer: Trainer) -> None:
        advance = trainer.advance

        def interrupted() -> None:
            if trainer.run.seed == 1 and trainer.step == 100:
                raise KeyboardInterrupt
            advance()

        trainer.advance = interrupted  # type: ignore[method-assign]

    seats = together(tmp_path, load, *TD3, prepare=interrupt_at_100)
    assert [type(seat.error) for seat in seats] == [KeyboardInterrupt] * 3


def test_an_interrupt_before_the_first_step_begins_no_other(tmp_path: Path, load: Load) -> None:
    def interrupt(trainer: Trainer) -> None:
        if trainer.run.seed == 1:
            raise KeyboardInterrupt

    seats = together(tmp_path, load, *TD3, prepare=interrupt)
    assert [type(seat.error) for seat in seats] == [KeyboardInterrupt] * 2 + [type(None)]
    assert not (tmp_path / "2").exists()


def test_what_draws_random_numbers_is_left_to_each(
    tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = (
        *("alg=classification", "dataset=digits", "network=cnn", "network.channels=[4]"),
        *("network.dropout=0.5", "trainer.total_epochs=1", "logger.trackers=[csv]"),
    )
    together(tmp_path / "together", load, *overrides)
    alone(tmp_path / "alone", load, *overrides)
    for name in SEEDS:
        assert_same(tmp_path / "together" / name, tmp_path / "alone" / name, **ROUNDED)
    assert "network is not compiled, for torch.compile cannot: vmap: called rand" in caplog.text
    assert caplog.text.count("is not compiled") == 1


@pytest.mark.parametrize("alg", algs())
def test_every_algorithm_runs_in_lockstep(
    tmp_path: Path, load: Load, alg: str, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [*small(alg, tmp_path, batch_size=16, capacity=400), "logger.trackers=[csv]"]
    cfg = load(*overrides)
    if cfg.env.get("pixels"):
        overrides += ["network.hidden_dims=[16]", "dataset.batch_size=4", "env.action_repeat=25"]
    total = 56 if cfg.env.get("pixels") else 96 if collects(cfg) else 20
    overrides += [f"trainer.total_steps={total}", "trainer.total_epochs=null"]
    overrides += ["trainer.evaluation.every=1000", "trainer.evaluation.episodes=1"]
    overrides += [f"trainer.log_every={total // 2}"]
    if "warmup_steps" in (cfg.trainer.pace or {}):
        overrides.append("trainer.pace.warmup_steps=48")
    seats = together(tmp_path / "together", load, *overrides, seeds=SEEDS[:2])
    assert [seat.error for seat in seats] == [None] * 2
    alone(tmp_path / "alone", load, *overrides, seeds=SEEDS[:2])
    for name in SEEDS[:2]:
        one, other = (weights(tmp_path / how / name) for how in ("together", "alone"))
        far = [(one[key] - other[key]).abs() > 1e-4 for key in one if one[key].is_floating_point()]
        # Adam moves a weight whose gradient is all rounding, as of a bias before a norm, by that.
        assert torch.cat([each.flatten() for each in far]).float().mean() < 0.2
    left = "is not compiled" in caplog.text
    assert left == (alg == "drqv2"), "its encoder's memory format is none that vmap knows"


def test_on_a_cpu_eager_gradients_are_left_to_each(
    tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [*TD3, "trainer.total_steps=120"]

    def task(seat: Seat) -> float:
        return build_trainer(
            tmp_path / seat.name, load(*overrides, f"seed={seat.name}"), seat
        ).train()

    before = torch.get_rng_state()
    assert all(seat.error is None for seat in run_in_lockstep(task, SEEDS, StopRequest()))
    assert torch.equal(torch.get_rng_state(), before)
    assert caplog.text.count("take no less time than as many processes do") == 1
    alone(tmp_path / "alone", load, *overrides)
    for name in SEEDS:
        assert_same(tmp_path / name, tmp_path / "alone" / name, **ROUNDED)
