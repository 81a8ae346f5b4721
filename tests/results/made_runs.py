"""Run directories as training leaves them, written without training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from research.launchers.plan.ledger import PLAN
from research.status import BLANK

TASKS = {"cheetah": ("cheetah", "run"), "walker": ("walker", "walk")}


def write_run(
    folder: Path,
    returns: Sequence[float] = (1.0, 2.0, 3.0),
    *,
    alg: str = "td3",
    env: str = "cheetah",
    seed: int = 0,
    lr: float = 1e-3,
    every: int = 1000,
    state: str = "completed",
    action_repeat: int = 1,
    choices: bool = True,
) -> Path:
    """A run directory with an evaluation every so many steps; the folder."""
    domain, task = TASKS[env]
    config = {
        "seed": seed,
        "name": f"{alg}_{env}",
        "env": {"domain": domain, "task": task, "action_repeat": action_repeat},
        "alg": {"_target_": f"research.algs.{alg}.{alg.upper()}", "optim": {"lr": lr}},
        "trainer": {"total_steps": 5000, "score": {"metric": "eval/return", "mode": "max"}},
    }
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    if choices:
        chosen = {"alg": alg, "env": env, "network": f"for_{alg}", "hydra/launcher": "local"}
        chosen = {"runtime": {"choices": chosen}}
        (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": chosen}))
    steps = [every * (index + 1) for index in range(len(returns))]
    status = {**BLANK, "state": state, "attempt": 1, "step": steps[-1] if steps else 0}
    (folder / "status.json").write_text(json.dumps({**status, "total_steps": 5000}))
    rows = [
        {"step": step, "frames": step * action_repeat, "updates": step, "return": value}
        for step, value in zip(steps, returns, strict=True)
    ]
    if rows:
        write_log(folder / "eval.csv", rows)
    return folder


def write_log(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A log, its rows completed by the columns that every log has."""
    clock = {"step": 0, "frames": 0, "updates": 0, "epoch": 0, "seconds": 0.5}
    names = list(clock | dict(rows[0]))
    lines = [",".join(names)]
    lines += [",".join(str({**clock, **row}[name]) for name in names) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))


def write_plan(folder: Path, jobs: Sequence[Mapping[str, str]]) -> None:
    """A sweep's plan, each job in a folder named by what varies."""
    entries = []
    for number, varies in enumerate(jobs):
        name = ",".join(f"{key}={value}" for key, value in varies.items())
        overrides = [f"{key}={value}" for key, value in varies.items()]
        entry = {"number": number, "name": name, "folder": name, "varies": dict(varies)}
        entries.append({**entry, "overrides": overrides})
    folder.mkdir(parents=True, exist_ok=True)
    config = {"alg": {"_target_": "research.algs.td3.TD3"}, "env": {"id": "Pendulum-v1"}}
    plan = {"command": [], "folder": str(folder), "config": config, "jobs": entries}
    (folder / PLAN).write_text(json.dumps(plan))
