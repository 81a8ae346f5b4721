"""Runs of a few seconds, trained by the command itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.commands import train

LENGTHS = [
    *("trainer.total_steps=60", "trainer.log_every=20", "trainer.evaluation.every=30"),
    "network.hidden_dims=[16]",
]
RL = [*LENGTHS, "trainer.pace.warmup_steps=24", "dataset.batch_size=8", "dataset.capacity=120"]
PENDULUM = [
    *("alg=td3", "env=pendulum", "processor=normalise", "env.max_episode_steps=30", *RL),
    "trainer.evaluation.episodes=3",
]
EXAMPLES = [*LENGTHS, "network=mlp", "trainer.total_epochs=null", "dataset.batch_size=32"]


def train_each(folder: Path, runs: Mapping[str, Sequence[str]]) -> Path:
    """Train every run to its end, in a directory of its name; returns the folder of all."""
    for name, overrides in runs.items():
        process = train(folder / name, *overrides)
        process.join(120)
        assert process.exitcode == 0, (folder / f"{name}.txt").read_text()
    return folder
