"""Start-up of the others: ``python benchmarks/first_step.py sb3|cleanrl REPORT``.

Each gets to the first step of TD3 on cheetah run as its users do, on our environment, which then
reports the time and ends the process. All settings are written here: no Hydra, no config.
"""

import sys
from pathlib import Path
from typing import Any

from gymnasium.vector import SyncVectorEnv

from benchmarks.stopwatch import make_timed

SEED = 0
CAPACITY = 1_000_000


def start_sb3(report: Path) -> None:
    """As in the documentation of Stable-Baselines3: make the model, learn."""
    # It imports the abandoned gym where there is one, which is no part of its own start.
    sys.modules["gym"] = None  # type: ignore
    import numpy as np
    from stable_baselines3 import TD3
    from stable_baselines3.common.noise import NormalActionNoise

    env = make_env(report).envs[0]
    noise = NormalActionNoise(np.zeros(6), np.full(6, 0.1))
    model = TD3(
        "MlpPolicy",
        env,
        learning_starts=10_000,
        buffer_size=CAPACITY,
        action_noise=noise,
        policy_kwargs={"net_arch": [256, 256]},
        seed=SEED,
    )
    model.learn(1_000_000)


def start_cleanrl(report: Path) -> None:
    """What CleanRL's single-file TD3 (Huang et al., 2022, https://jmlr.org/papers/v23/21-1342.html)
    imports and sets up, in our words.

    Deviations: argparse reads the options, not tyro, which only makes this start sooner.
    """
    import argparse
    import random

    import gymnasium
    import numpy as np
    import torch
    from torch import nn
    from torch.utils.tensorboard import SummaryWriter

    parser = argparse.ArgumentParser()
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args([])
    writer = SummaryWriter(str(report.parent / "cleanrl"))
    writer.add_text("hyperparameters", f"|learning_rate|{options.learning_rate}|")
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    env = make_env(report)
    env.envs = [gymnasium.wrappers.RecordEpisodeStatistics(env.envs[0])]

    def make_mlp(in_dim: int, out_dim: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(in_dim, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
            nn.Linear(256, out_dim),
        )  # fmt: skip

    actor, actor_target = make_mlp(17, 6), make_mlp(17, 6)
    critics, critic_targets = ([make_mlp(23, 1), make_mlp(23, 1)] for _ in range(2))
    actor_target.load_state_dict(actor.state_dict())
    for critic, target in zip(critics, critic_targets, strict=True):
        target.load_state_dict(critic.state_dict())
    weights = [*critics[0].parameters(), *critics[1].parameters()]
    optims = [torch.optim.Adam(p, lr=options.learning_rate) for p in (actor.parameters(), weights)]
    widths = {"obs": 17, "next_obs": 17, "action": 6, "reward": 1, "done": 1}
    buffer = {name: np.zeros((CAPACITY, 1, width), np.float32) for name, width in widths.items()}
    obs, _ = env.reset(seed=SEED)
    action = np.stack([env.single_action_space.sample()])
    env.step(action)
    raise AssertionError(f"the first step ends the process: {obs}, {optims}, {buffer}")


def make_env(report: Path) -> Any:
    """Our cheetah run, which ends the process at its first step."""
    from research.envs.dm_control import make_dm_control

    env = make_dm_control(
        domain="cheetah",
        task="run",
        num_envs=1,
        subprocesses=False,
        action_repeat=1,
        max_episode_steps=None,
        flatten_obs=True,
        height=240,
        width=320,
        camera_id=0,
        pixels=False,
        pixel_size=84,
        frame_stack=3,
    )
    assert isinstance(env, SyncVectorEnv)
    return make_timed(env=env, first=0, last=1, report=str(report))


if __name__ == "__main__":
    {"sb3": start_sb3, "cleanrl": start_cleanrl}[sys.argv[1]](Path(sys.argv[2]))
