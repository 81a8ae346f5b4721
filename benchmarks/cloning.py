"""Does behaviour cloning act as its expert does? TD3 on Pendulum-v1, and clones of few episodes.

An expert is trained by ``train.py``, episodes of it without noise become an ``.npz`` of ``obs`` and
``target``, and ``alg=bc`` learns from the first of them. Runs that are in the work folder already
are not repeated. Expert and clones begin their evaluation's episodes in the same states.
"""

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from gymnasium.vector import SyncVectorEnv
from hydra import compose, initialize_config_dir
from torch import nn

from benchmarks.learning import t_interval, with_interval
from benchmarks.measure import RESULTS, ROOT, describe_machine, read_rows, run_python, write_rows
from research.config import build
from research.files import write_whole
from research.hydra_versions import VERSION_BASE
from research.training.evaluation import evaluate
from research.training.policy import Policy
from research.training.saving.initialise import find_checkpoint, read_weights

EXPERT = ("alg=td3", "env=pendulum", "device=cpu", "trainer.total_steps=20000")
NUM_UPDATES = 5_000
NUM_EPISODES = 20
"""Of an evaluation."""


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "cloning", help="runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the report")
    parser.add_argument("--episodes", type=int, nargs="+", default=[1, 5, 20], help="to learn from")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    arguments = parser.parse_args()
    work, seeds = arguments.work.resolve(), range(arguments.seeds)
    work.mkdir(parents=True, exist_ok=True)
    run(work / "expert", EXPERT)
    policy, env = load_policy(work / "expert", EXPERT)
    with closing(env):
        obs, actions, starts = record(policy, env, max(arguments.episodes))
        expert = [
            evaluate(policy, env, num_episodes=NUM_EPISODES, seed=seed, step=NUM_UPDATES)["return"]
            for seed in seeds
        ]
    rows = [{"episodes": "expert", "seed": seed, "return": expert[seed]} for seed in seeds]
    for episodes in arguments.episodes:
        path, end = work / f"{episodes}.npz", starts[episodes]
        np.savez(path, obs=obs[:end], target=actions[:end])
        for seed in seeds:
            score = clone(work / f"clone_{episodes}_{seed}", path, seed)
            rows.append({"episodes": episodes, "seed": seed, "return": score})
    report(rows, arguments.results)


def run(folder: Path, overrides: Sequence[str]) -> list[dict[str, str]]:
    """The evaluations of a run, which is trained unless it is complete."""
    command = [ROOT / "train.py", *overrides, f"hydra.run.dir={folder}"]
    run_python(command, threads=1, log=folder.with_suffix(".log"))
    return read_rows(folder / "eval.csv")


def clone(folder: Path, path: Path, seed: int) -> float:
    """The return of a clone of the examples in ``path``."""
    every = f"trainer.evaluation.every={NUM_UPDATES}"
    steps = f"trainer.total_steps={NUM_UPDATES}", f"trainer.evaluation.episodes={NUM_EPISODES}"
    names = "alg=bc", "env=pendulum", "device=cpu", f"dataset.path={path}", f"seed={seed}"
    return float(run(folder, [*names, every, *steps])[-1]["return"])


def load_policy(folder: Path, overrides: Sequence[str]) -> tuple[Policy, SyncVectorEnv]:
    """The policy of a run's best checkpoint, and its environment."""
    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        cfg = compose("config", [*overrides, "name=expert"])
    env = build(cfg.env)
    spaces = env.single_observation_space, env.single_action_space
    processor = build(cfg.processor, *spaces)
    alg = build(cfg.alg, build(cfg.network, *spaces))
    weights = read_weights(find_checkpoint(folder) / "weights.pt")
    nn.ModuleDict({"alg": alg, "processor": processor}).load_state_dict(dict(weights))
    return Policy(alg, processor), env


def record(
    policy: Policy, env: SyncVectorEnv, episodes: int
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Observations and actions of episodes, and where each episode begins and the last ends."""
    seen, done, starts = [], [], [0]
    for episode in range(episodes):
        obs, _ = env.reset(seed=[episode])
        is_over = False
        while not is_over:
            action = policy(obs, step=0, explore=False)
            seen.append(obs[0].copy())
            done.append(action[0])
            obs, _, terminated, truncated, _ = env.step(action)
            is_over = bool(terminated[0] or truncated[0])
        starts.append(len(seen))
    return np.stack(seen), np.stack(done), starts


def report(rows: Sequence[dict[str, object]], folder: Path) -> None:
    """Write ``cloning`` as .csv and .md into ``folder``."""
    write_rows(folder / "cloning.csv", rows)
    lines = ["# Clones of TD3 on Pendulum-v1", "", f"Return of {NUM_EPISODES} episodes, mean and"]
    lines[-1] += " 95 % interval over seeds (Student's t); untrained, about -1200."
    lines += ["", "| learned from | return |", "| --- | --- |"]
    for name in dict.fromkeys(row["episodes"] for row in rows):
        returns = np.array([row["return"] for row in rows if row["episodes"] == name])
        label = "the expert itself" if name == "expert" else f"{name} of its episodes"
        lines.append(f"| {label} | {with_interval(returns.mean(), *t_interval(returns))} |")
    facts = describe_machine(threads=1)
    lines += ["", ", ".join(f"{name} {value}" for name, value in facts.items())]
    text = "\n".join(lines) + "\n"
    write_whole(folder / "cloning.md", text)
    print(text)


if __name__ == "__main__":
    main()
