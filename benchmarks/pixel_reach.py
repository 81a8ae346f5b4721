"""Does DrQ-v2 learn from pixels? A point to be steered onto another, seen in 32x32 images.

A task of a minute, where nothing but images tells where the points are. Standing still, random
actions and the best ones give the scale. ``python -m benchmarks.pixel_reach`` trains the seeds by
our launcher and writes a CSV and a table; stopped, it goes on when it is called again.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from benchmarks.learning import t_interval
from benchmarks.measure import RESULTS, ROOT, describe_machine, environment, read_rows, write_rows
from research.files import write_whole

MODULE = "benchmarks.pixel_reach"
ID = "PixelReach-v0"
SPEED = 0.2
"""Furthest along each axis in a step."""
GRID = np.linspace(-1, 1, 32)
OVERRIDES = (
    *(
        "alg=drqv2",
        "env=gymnasium",
        f"env.id={MODULE}:{ID}",
        "~env.pixels",
        "env.action_repeat=1",
    ),
    *("network.hidden_dims=[64,64]", "alg.optim.lr=1e-3", "alg.noise_steps=2000"),
    *("dataset.batch_size=64", "dataset.capacity=10000", "trainer.pace.warmup_steps=200"),
    *("trainer.evaluation.every=500", "trainer.evaluation.episodes=20"),
)
"""What is smaller or faster than DrQ-v2's own settings."""


class PixelReach(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point and its target in the square [-1, 1] x [-1, 1], each a blob in a channel of its own.

    The action (2,) moves the point; the reward is 1 minus its distance to the target.
    """

    observation_space = Box(0, 255, (2, 32, 32), np.uint8)
    action_space = Box(-1, 1, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.point, self.target = self.np_random.uniform(-0.8, 0.8, (2, 2))
        return self.draw(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.point = np.clip(self.point + SPEED * np.asarray(action, np.float64), -1, 1)
        reward = 1 - float(np.linalg.norm(self.point - self.target))
        return self.draw(), reward, False, False, {}

    def draw(self) -> np.ndarray:
        """The image (2, 32, 32)."""
        return np.stack([draw_blob(self.point), draw_blob(self.target)])


def draw_blob(place: np.ndarray) -> np.ndarray:
    """A bell of about four pixels around a place: an image (32, 32), uint8."""
    squares = (GRID - place[0]) ** 2 + (GRID[:, None] - place[1]) ** 2
    return (255 * np.exp(-squares / 0.03)).astype(np.uint8)


gymnasium.register(ID, f"{MODULE}:PixelReach", max_episode_steps=20)


def move_straight(env: PixelReach) -> np.ndarray:
    """The best action: each axis for itself comes as near as it can."""
    return np.clip((env.target - env.point) / SPEED, -1, 1)


def mean_return(act: Callable[[PixelReach], np.ndarray], num_episodes: int = 1000) -> float:
    """Of episodes that see the points as they are."""
    env = PixelReach()
    total = 0.0
    for seed in range(num_episodes):
        env.reset(seed=seed)
        total += sum(env.step(act(env))[1] for _ in range(20))
    return total / num_episodes


def main() -> None:
    """Train, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--steps", type=int, default=4000, help="of a run")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "pixel_reach", help="runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the report")
    options = parser.parse_args()
    seeds = range(options.seeds)
    command = (
        *(
            sys.executable,
            ROOT / "train.py",
            "-m",
            *OVERRIDES,
            f"trainer.total_steps={options.steps}",
        ),
        *(f"seed={','.join(map(str, seeds))}", "hydra.sweep.dir=" + str(options.work.resolve())),
        "hydra.sweep.subdir=${seed}",
    )
    subprocess.run(command, cwd=ROOT, env=environment(1), check=True)
    report({seed: options.work / str(seed) for seed in seeds}, options.results / "pixel_reach")


def report(folders: dict[int, Path], path: Path) -> None:
    """Write ``path`` as .csv and .md."""
    tables = {seed: read_rows(folder / "eval.csv") for seed, folder in folders.items()}
    write_rows(
        path.with_suffix(".csv"),
        [{"seed": seed, **row} for seed, table in tables.items() for row in table],
    )
    returns = np.array([[float(row["return"]) for row in table] for table in tables.values()])
    low, high = t_interval(returns)
    generator = np.random.default_rng(0)
    scale = {
        "standing still": mean_return(lambda _: np.zeros(2)),
        "random actions": mean_return(lambda _: generator.uniform(-1, 1, 2)),
        "the best actions": mean_return(move_straight),
    }
    lines = [
        "# DrQ-v2 on a small task from pixels",
        "",
        f"Mean return and 95 % interval (Student's t) over {len(tables)} seeds, 20 episodes each.",
        f"Settings: `{' '.join(OVERRIDES)}`. See `benchmarks/pixel_reach.py`.",
        "",
        "| steps | return | each seed |",
        "| --- | --- | --- |",
    ]
    for index, row in enumerate(next(iter(tables.values()))):
        each = ", ".join(f"{value:.1f}" for value in returns[:, index])
        interval = f"{returns[:, index].mean():.1f} ({low[index]:.1f} to {high[index]:.1f})"
        lines.append(f"| {int(row['step']):,} | {interval} | {each} |")
    lines += [f"| {name} | {value:.1f} | |" for name, value in scale.items()]
    machine = ", ".join(f"{name} {value}" for name, value in describe_machine(threads=1).items())
    text = "\n".join([*lines, "", machine]) + "\n"
    write_whole(path.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
