"""How many updates a second does a GPU make? Ours, however executed, beside others.

TD3 and SAC with networks and batches of conf/, on the spaces of cheetah run. The replay is full of
random steps, and no environment steps between the updates.

- ``eager``, ``compile``, ``graph``: our learner by ``trainer.execution``; a thread gathers batches
  on the host, as by default.
- ``graph_on_device``: the same with ``dataset.device=cuda``.
- ``sb3``: Stable-Baselines3's ``train``, eager.
- ``captured``: TD3 alone, a bare loop in the manner of LeanRL (``benchmarks/captured_td3.py``).

The systems take turns in one process. A ratio is against ``eager`` in the same round. A system that
fails is left out, with its error.
"""

import argparse
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from benchmarks.captured_td3 import CapturedTD3
from benchmarks.measure import RESULTS, describe_machine, spread, write_rows
from benchmarks.numerics import compose_config
from research.batches import Step
from research.config import build
from research.machine.device import choose_device
from research.training.execution import Execution
from research.training.learner import Learner
from research.training.meter import Phases
from research.training.seed import seed_everything

CAPACITY = 20_000

log = logging.getLogger(__name__)

Learn = Callable[[int], None]
"""Makes so many updates, and waits for the device."""


def main() -> None:
    """Measure, print, and write the table as far as it is, after every round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--alg", choices=["td3", "sac"], default="td3")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--updates", type=int, default=1000, help="of a window")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    device = choose_device(arguments.device)
    facts = {"device": device_name(device), **describe_machine(threads=torch.get_num_threads())}
    makers = choose(arguments.alg, device)
    compiling = {"compile": makers.pop("compile")}  # takes as long as all others
    systems = dict(make_systems(makers))
    rows: list[dict[str, float]] = []
    for index in range(arguments.rounds):
        if index == 1 or arguments.rounds == 1:
            systems |= make_systems(compiling)
        row = {}
        for name, learn in list(systems.items()):
            start = time.perf_counter()
            try:
                learn(arguments.updates)
            except Exception:
                del systems[name]
                log.exception("%s is left out from now on", name)
                continue
            row[f"{name}_updates_per_s"] = arguments.updates / (time.perf_counter() - start)
        for name in systems:
            if "eager" in systems:
                ratio = row[f"{name}_updates_per_s"] / row["eager_updates_per_s"]
                row[f"{name}_ratio"] = ratio
        rows.append(row)
        path = arguments.results / f"gpu_updates_{arguments.alg}.csv"
        write_rows(path, [{**each, **facts} for each in rows])
    for column in rows[-1]:
        print(f"  {column:32} {spread([row[column] for row in rows if column in row])}")


def make_systems(makers: Mapping[str, Callable[[], Learn]]) -> Iterator[tuple[str, Learn]]:
    """The systems that work, ready for their windows."""
    for name, make in makers.items():
        start = time.perf_counter()
        try:
            learn = make()
            learn(50)
        except Exception:
            log.exception("%s is left out", name)
        else:
            log.info("%s is ready after %.1f s", name, time.perf_counter() - start)
            yield name, learn


def device_name(device: torch.device) -> str:
    """The card's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def choose(alg: str, device: torch.device) -> dict[str, Callable[[], Learn]]:
    """What makes each system that runs on the device."""
    systems: dict[str, Callable[[], Learn]] = {
        "eager": partial(make_ours, alg, device, "eager"),
        "sb3": partial(make_sb3, alg, device),
    }
    on_device = "dataset.device=cuda"
    if device.type == "cuda":
        systems["graph"] = partial(make_ours, alg, device, "graph")
        systems["graph_on_device"] = partial(make_ours, alg, device, "graph", on_device)
    if alg == "td3":
        systems["captured"] = partial(make_captured, device)
    return {**systems, "compile": partial(make_ours, alg, device, "compile")}


def make_config(alg: str, device: torch.device, *overrides: str) -> DictConfig:
    """The config of train.py, with a small replay."""
    own = (f"alg={alg}", "env=cheetah", f"device={device.type}", f"dataset.capacity={CAPACITY}")
    return compose_config(*own, *overrides)


def make_ours(alg: str, device: torch.device, execution: Execution, *overrides: str) -> Learn:
    """Our learner."""
    cfg = make_config(alg, device, *overrides)
    seed_everything(0)
    env = build(cfg.env)
    data = build(cfg.dataset, env, 0)
    spaces = env.single_observation_space, env.single_action_space
    everywhere = np.ones(1, np.bool_)
    data.start_episodes(random_steps(spaces[0], 1), everywhere)
    for obs in random_steps(spaces[0], CAPACITY):
        action = env.action_space.sample()
        nothing = np.zeros(1, np.bool_)
        data.add(Step(action, np.ones(1, np.float32), nothing, nothing, obs[None]))
    env.close()
    processor = build(cfg.processor, *spaces).to(device)
    learner = Learner(
        build(cfg.alg, build(cfg.network, *spaces).to(device)),
        processor,
        data,
        device,
        total_updates=1_000_000,
        schedule=None,
        max_grad_norm=None,
        prefetch=None,
        precision="fp32",
        accumulate=1,
        ema_decay=None,
        execution=execution,
    )
    phases = Phases()

    def learn(count: int) -> None:
        for index in range(count):
            learner.update(index, phases, can_prepare=True)
        learner.take_metrics()
        if learner.steps.captured is not None and learner.steps.captured.is_refused:
            raise RuntimeError("updates run eagerly")

    return learn


def make_sb3(alg: str, device: torch.device) -> Learn:
    """Stable-Baselines3's model with its replay buffer."""
    from stable_baselines3.common.logger import Logger

    from benchmarks.sb3 import make_model

    cfg = make_config(alg, device)
    env = build(cfg.env)
    model = make_model(cfg, env.envs)
    model.set_logger(Logger(None, []))
    observations = random_steps(env.single_observation_space, CAPACITY + 1)
    for obs, next_obs in pairwise(observations):
        action, reward, done = env.action_space.sample(), np.ones(1), np.zeros(1)
        model.replay_buffer.add(obs[None], next_obs[None], action, reward, done, [{}])

    def learn(count: int) -> None:
        model.train(count, cfg.dataset.batch_size)
        wait(device)

    return learn


def make_captured(device: torch.device) -> Learn:
    """The bare loop."""
    td3 = CapturedTD3(17, 6, CAPACITY, device)

    def learn(count: int) -> None:
        td3.learn(count)
        wait(device)

    return learn


def wait(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_steps(space: Any, count: int) -> np.ndarray:
    """Observations (count, O)."""
    return np.random.default_rng(0).normal(size=(count, *space.shape)).astype(np.float32)


if __name__ == "__main__":
    main()
