"""TD3, SAC, DQN and PPO of Stable-Baselines3, and TQC, CrossQ and QR-DQN of its contributors.

Raffin et al., 2021, https://jmlr.org/papers/v22/20-1364.html.

It takes the command line of train.py and reads every setting from the config that this composes:

    python benchmarks/sb3.py FOLDER alg=td3 env=cheetah trainer.total_steps=50000

Environment and evaluation are ours, so both are the same for the two; FOLDER becomes a run
directory of ours, with ``eval.csv`` alone. What remains of its own: uniformly random warm-up
actions of TD3 get exploration noise too, only the first episode of training is seeded, the log-std
of SAC, TQC and CrossQ is clipped to [-20, 2], CrossQ's running variances are unbiased, the targets
of DQN and QR-DQN are those of plain Q-learning (``alg.double=false``), and
``processor=normalise_rollout`` is its VecNormalize, whose statistics move with every step.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor

from benchmarks.measure import ROOT, write_config
from research.algs.base import Algorithm, Objective
from research.config import build
from research.hydra_versions import VERSION_BASE
from research.processors.base import Identity
from research.status import Status
from research.training.evaluation import evaluate
from research.training.policy import Policy
from research.training.records.clock import Clock
from research.training.records.logger import Logger
from research.training.saving.provenance import write_provenance


class Actor(Algorithm):
    """The policy of a model without noise, for our evaluation; the model learns by itself."""

    def __init__(self, model: BaseAlgorithm) -> None:
        super().__init__()
        self.model = model
        self.network = model.policy

    def act(self, obs: Any, step: Tensor, explore: bool) -> Tensor:
        array = obs.cpu().numpy()
        if (normaliser := self.model.get_vec_normalize_env()) is not None:
            array = normaliser.normalize_obs(array)
        action, _ = self.model.predict(array, deterministic=True)
        return torch.as_tensor(action)

    def objectives(self) -> Sequence[Objective]:
        raise NotImplementedError("the model learns by itself")


class Encoded(BaseFeaturesExtractor):
    """One of our encoders, for its networks."""

    def __init__(self, observation_space: gymnasium.Space, encoder: DictConfig) -> None:
        made = build(encoder)(observation_space)
        super().__init__(observation_space, made.output_dim)
        self.encoder = made

    def forward(self, obs: Tensor) -> Tensor:
        return self.encoder(obs)


def main() -> None:
    """Train and evaluate as the config says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where eval.csv goes")
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    arguments = parser.parse_args()
    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        cfg = compose("config", [*arguments.overrides, "name=sb3"], return_hydra_config=True)
    choices = cfg.hydra.runtime.choices
    choices.alg = f"{choices.alg} of Stable-Baselines3"
    write_config(arguments.folder, cfg)
    write_provenance(arguments.folder, sys.argv)
    status = Status(arguments.folder)
    status.start(total_steps=cfg.trainer.total_steps)
    train(cfg, arguments.folder)
    status.update(step=cfg.trainer.total_steps)
    status.end("completed", "reached total_steps")


def train(cfg: DictConfig, folder: Path) -> None:
    """Learn to ``trainer.total_steps`` with evaluations on the way, from nothing."""
    env, eval_env = build(cfg.env), build(cfg.env)
    model = make_model(cfg, env.envs)
    processor = Identity(env.single_observation_space, env.single_action_space)
    policy = Policy(Actor(model), processor)
    logger = Logger(folder, [])
    logger.rewind(0)
    start = time.monotonic()
    every, total = cfg.trainer.evaluation.every, cfg.trainer.total_steps
    if cfg.dataset.get("minibatches") and every % (env.num_envs * cfg.trainer.pace.horizon):
        raise ValueError("trainer.evaluation.every must be a multiple of a rollout's steps")
    while (left := total - model.num_timesteps) > 0:
        model.learn(min(every, left), reset_num_timesteps=False)
        step = min(model.num_timesteps, total)
        metrics = evaluate(
            policy, eval_env, num_episodes=cfg.trainer.evaluation.episodes, seed=cfg.seed, step=step
        )
        clock = Clock(step, step, model._n_updates, 0, time.monotonic() - start)
        logger.log("eval", metrics, clock)
        print(f"step {step:,}: return {metrics['return']:.1f} after {clock.seconds:.0f} s")


def make_model(cfg: DictConfig, envs: Sequence[gymnasium.Env]) -> Any:
    """The model for our config; its own DummyVecEnv and Monitor go around ``envs``."""
    name = cfg.alg._target_.rpartition(".")[2]
    if name == "PPO":
        return make_ppo(cfg, envs)
    [env] = envs  # those that replay take one environment here
    makes = {"TD3": make_td3, "SAC": make_sac, "DQN": make_dqn, "QRDQN": make_qrdqn}
    make = (makes | {"TQC": make_tqc, "CrossQ": make_crossq})[name]
    pace = build(cfg.trainer.pace)
    pace.begin(cfg.trainer.total_steps, 1)
    settings = {
        "learning_rate": cfg.alg.optim.lr,
        "buffer_size": cfg.dataset.capacity,
        "learning_starts": pace.warmup_steps,
        "batch_size": cfg.dataset.batch_size,
        "tau": cfg.alg.get("tau"),
        "gamma": cfg.dataset.discount,
        "train_freq": pace.steps_per_update,
        "gradient_steps": pace.updates_per_step,
        "n_steps": cfg.dataset.n_step,
        "policy_kwargs": {"net_arch": make_arch(cfg.network)},
        "seed": cfg.seed,
        "device": cfg.device,
    }
    if "num_critics" in cfg.network:
        settings["policy_kwargs"]["n_critics"] = cfg.network.num_critics
    return make(cfg, env, settings)


def make_arch(network: DictConfig) -> Any:
    """Widths of the hidden layers, of the actor and of the critics if they have their own."""
    if "hidden_dims" in network:
        return list(network.hidden_dims)
    return {"pi": list(network.actor_hidden_dims), "qf": list(network.critic_hidden_dims)}


def make_td3(cfg: DictConfig, env: gymnasium.Env, settings: dict[str, Any]) -> TD3:
    """TD3, with what the two have in common."""
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    noise_std = np.full(env.action_space.shape, cfg.alg.explore_noise)
    return TD3(
        "MlpPolicy",
        env,
        action_noise=NormalActionNoise(np.zeros_like(noise_std), noise_std),
        policy_delay=cfg.alg.actor_every,
        target_policy_noise=cfg.alg.target_noise,
        target_noise_clip=cfg.alg.noise_clip,
        **settings,
    )


def make_sac(cfg: DictConfig, env: gymnasium.Env, settings: dict[str, Any]) -> SAC:
    """SAC, with what the two have in common."""
    if cfg.alg.actor_every != 1:
        raise ValueError("Stable-Baselines3's SAC updates its actor every time")
    every = cfg.alg.target_every
    return SAC("MlpPolicy", env, target_update_interval=every, **entropy(cfg, env), **settings)


def make_tqc(cfg: DictConfig, env: gymnasium.Env, settings: dict[str, Any]) -> BaseAlgorithm:
    """TQC, with what the two have in common."""
    from sb3_contrib import TQC

    if cfg.alg.actor_every != 1:
        raise ValueError("sb3-contrib's TQC updates its actor every time")
    settings["policy_kwargs"]["n_quantiles"] = cfg.network.num_quantiles
    return TQC(
        "MlpPolicy",
        env,
        top_quantiles_to_drop_per_net=cfg.alg.dropped_quantiles,
        target_update_interval=cfg.alg.target_every,
        **entropy(cfg, env),
        **settings,
    )


def make_crossq(cfg: DictConfig, env: gymnasium.Env, settings: dict[str, Any]) -> BaseAlgorithm:
    """CrossQ, with what the two have in common."""
    from sb3_contrib import CrossQ

    del settings["tau"]
    settings["policy_kwargs"] |= {
        "batch_norm_momentum": cfg.network.momentum,
        "renorm_warmup_steps": cfg.network.warmup - 1,  # it warms up for one batch more
        "optimizer_kwargs": {"betas": tuple(cfg.alg.optim.betas)},
    }
    every = cfg.alg.actor_every
    return CrossQ("MlpPolicy", env, policy_delay=every, **entropy(cfg, env), **settings)


def entropy(cfg: DictConfig, env: gymnasium.Env) -> dict[str, Any]:
    """Settings of the temperature."""
    target_entropy: Any = cfg.alg.target_entropy
    if target_entropy is None:
        num_actions = gymnasium.spaces.flatdim(env.action_space)
        target_entropy = cfg.alg.get("entropy_per_action", -1.0) * num_actions
    return {"ent_coef": f"auto_{cfg.alg.temperature}", "target_entropy": target_entropy}


def make_qrdqn(cfg: DictConfig, env: gymnasium.Env, settings: dict[str, Any]) -> BaseAlgorithm:
    """QR-DQN, with what the two have in common."""
    from sb3_contrib import QRDQN

    if cfg.alg.kappa != 1 or cfg.network.dueling or cfg.network.noise_scale is not None:
        raise ValueError("its QR-DQN has kappa=1 and a plain network")
    settings["policy_kwargs"] |= {
        "n_quantiles": cfg.network.num_atoms,
        "optimizer_class": torch.optim.Adam,  # with its own epsilon, unlike the default here
    }
    return make_dqn(cfg, env, settings, QRDQN)


def make_dqn(
    cfg: DictConfig, env: gymnasium.Env, settings: dict[str, Any], make: Any = DQN
) -> BaseAlgorithm:
    """DQN, or what explores and moves its target as it does, with what the two have in common."""
    if cfg.network.encoder is not None:
        settings["policy_kwargs"] |= {
            "features_extractor_class": Encoded,
            "features_extractor_kwargs": {"encoder": cfg.network.encoder},
        }
    model = make(
        "MlpPolicy",
        env,
        target_update_interval=cfg.alg.target_every * settings["train_freq"],
        max_grad_norm=cfg.trainer.max_grad_norm,
        **settings,
    )
    start, end, steps = cfg.alg.explore_start, cfg.alg.explore_end, cfg.alg.explore_steps
    # its own schedule begins anew with every call of learn
    model.exploration_schedule = lambda _: (
        start + (end - start) * min(1.0, model.num_timesteps / steps)
    )
    anneal(model, cfg)
    return model


def make_ppo(cfg: DictConfig, envs: Sequence[gymnasium.Env]) -> PPO:
    """PPO, with what the two have in common."""
    horizon, minibatches = cfg.trainer.pace.horizon, cfg.trainer.pace.minibatches
    vector: Any = DummyVecEnv([lambda env=env: Monitor(env) for env in envs])
    if cfg.processor.get("processors"):
        vector = VecNormalize(vector, gamma=cfg.dataset.discount, clip_obs=10.0, clip_reward=10.0)
    activation = build(cfg.network.activation)
    model = PPO(
        "MlpPolicy",
        vector,
        learning_rate=cfg.alg.optim.lr,
        n_steps=horizon,
        batch_size=len(envs) * horizon // minibatches,
        n_epochs=cfg.trainer.pace.epochs,
        gamma=cfg.dataset.discount,
        gae_lambda=cfg.alg.gae_lambda,
        clip_range=cfg.alg.clip,
        clip_range_vf=cfg.alg.clip_value,
        normalize_advantage=cfg.alg.normalise_advantage,
        ent_coef=cfg.alg.entropy_weight,
        vf_coef=cfg.alg.value_weight,
        max_grad_norm=cfg.trainer.max_grad_norm,
        target_kl=cfg.alg.target_kl,
        policy_kwargs={
            "net_arch": list(cfg.network.hidden_dims),
            "activation_fn": activation if isinstance(activation, type) else type(activation()),
            "log_std_init": cfg.network.log_std,
        },
        seed=cfg.seed,
        device=cfg.device,
    )
    anneal(model, cfg)
    return model


def anneal(model: BaseAlgorithm, cfg: DictConfig) -> None:
    """Let the learning rate fall over the run, for its own schedule begins anew with ``learn``."""
    if (schedule := cfg.trainer.schedule) is None:
        return
    if schedule.warmup_updates or schedule.final_share:
        raise ValueError("this comparison is for rates that fall to 0 from the start")
    total = cfg.trainer.total_steps
    shapes = {"linear": lambda x: 1 - x, "cosine": lambda x: 0.5 + 0.5 * math.cos(math.pi * x)}
    shape = shapes[schedule._target_.rpartition("_")[2]]
    model.lr_schedule = lambda _: cfg.alg.optim.lr * shape(model.num_timesteps / total)


if __name__ == "__main__":
    main()
