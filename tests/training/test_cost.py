"""What a step costs besides arithmetic: the bytecode instructions that Python executes for it.

They are the same in every run and on every machine, unlike times, so that a fifth more is seen
among any load. What NumPy and PyTorch do within one call is not counted.
"""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from research.training.trainer import Trainer
from tests.conftest import Load
from tests.training.parts import build_trainer

RECORDED = {"td3": 16_900, "sac": 22_300, "ppo": 7_500}
"""Instructions per step of Python 3.11 with torch 2.14, on one pendulum."""

COMMON = (
    *("env=pendulum", "trainer.evaluation.every=1000", "trainer.checkpoints.every=1000"),
    *("trainer.checkpoints.minutes=null", "logger.trackers=[csv]", "trainer.total_steps=300"),
)
OFF_POLICY = "trainer.pace.warmup_steps=100", "dataset.capacity=1000", "network.hidden_dims=[8,8]"
ON_POLICY = "trainer.pace.horizon=50", "trainer.pace.minibatches=2"


def count_instructions(function: Callable[[], Any]) -> int:
    """The bytecode instructions of a call."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def test_instructions_are_counted_in_calls_too() -> None:
    def once() -> int:
        return sum(x * x for x in range(10))

    assert count_instructions(lambda: (once(), once())) > 1.9 * count_instructions(once) > 50


def count_steps(trainer: Trainer, steps: range) -> list[int]:
    """The bytecode instructions of each call of the loop that begins after one of these steps."""
    advance, counts = trainer.advance, []

    def counted() -> None:
        if trainer.step in steps:
            counts.append(count_instructions(advance))
        else:
            advance()

    trainer.advance = counted  # type: ignore[method-assign]
    trainer.train()
    return counts


@pytest.mark.skipif(
    (sys.version_info[:2], torch.__version__.split(".")[:2]) != ((3, 11), ["2", "14"]),
    reason="recorded with Python 3.11 and torch 2.14",
)
@pytest.mark.parametrize("alg", RECORDED)
def test_a_step_takes_no_more_instructions_than_were_recorded(
    tmp_path: Path, load: Load, alg: str
) -> None:
    """If it takes more for a good reason, the commit that records them gives it."""
    pace = ON_POLICY if alg == "ppo" else OFF_POLICY
    trainer = build_trainer(tmp_path, load(f"alg={alg}", *COMMON, *pace))
    counts = count_steps(trainer, range(150, 250))  # of PPO two rollouts
    per_step = statistics.mean(counts)
    assert len(counts) == 100
    assert per_step < 1.2 * RECORDED[alg]
    assert per_step > 0.8 * RECORDED[alg], "it has become cheaper: record that"


def test_a_step_of_many_environments_is_made_of_arrays(tmp_path: Path, load: Load) -> None:
    """Of sixteen times as many; what grows are the metrics of those whose episodes end."""
    medians = []
    for count in (64, 1024):
        sizes = (f"env.num_envs={count}", f"trainer.pace.warmup_steps={10 * count}")
        own = (*sizes, f"trainer.total_steps={60 * count}", "dataset.capacity=50000")
        native = ("env=native", "env.id=CartPole-v1", f"trainer.pace.steps_per_update={count}")
        never = "trainer.checkpoints.every=null"
        seldom = (never, "trainer.evaluation.every=1000000", "trainer.log_every=1000000")
        cfg = load("alg=dqn", "network.hidden_dims=[8]", *COMMON, *native, *own, *seldom)
        trainer = build_trainer(tmp_path / str(count), cfg)
        medians.append(statistics.median(count_steps(trainer, range(30 * count, 60 * count))))
    assert medians[1] < 2 * medians[0]
