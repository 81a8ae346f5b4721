"""DrQ-v2 (Yarats et al., 2021, https://arxiv.org/abs/2107.09645) in plain PyTorch, on the CPU.

A stand-in of ours for the authors' program, which no package holds, to be timed beside
``alg=drqv2``. It is written from the paper and computes as theirs is known to: contiguous images in
float32, shifts by ``grid_sample``, two critics one after the other, an Adam each for encoder,
critics and actor with PyTorch's defaults, gradients for all that a loss depends on, a Python loop
for the targets, and a replay of whole episodes of stacked images that draws each transition by
itself. Environment, network shapes, first weights and numbers are those of our config. It takes the
command line of train.py:

    python benchmarks/drqv2_plain.py FOLDER alg=drqv2 trainer.total_steps=1000

``FOLDER/time.csv`` has the columns of ours. For reference, not of such a run: on a CPU of this kind
the authors' own program made 2.24 frames/s, with 97 % of the time in its updates.

Left out: their replay's files and its loader processes, evaluation and checkpoints.
"""

import argparse
import copy
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.measure import ROOT
from research.algs.base import Metrics, OptimFactory
from research.algs.drqv2 import EDGE, DrQv2
from research.algs.targets import frozen_copy
from research.batches import Transition
from research.config import build
from research.hydra_versions import VERSION_BASE
from research.networks.drqv2 import Encoder, TrunkCritics
from research.networks.mlp import EnsembleLinear, EnsembleMLP
from research.training.meter import Phases
from research.training.records.clock import Clock
from research.training.records.logger import Logger
from research.training.seed import seed_everything


class PlainDrQv2:
    """Learns from uint8 images that it shifts itself, beginning with the weights of ``alg``.

    Random numbers are drawn in the order of RandomShift and DrQv2, so a seed gives the same ones.

    Args:
        alg: gives weights and numbers, and is left as it is; it has two critics.
        optim: builds each optimizer from parameters.
        pad: most pixels of a shift.

    """

    def __init__(self, alg: DrQv2, *, optim: OptimFactory, pad: int) -> None:
        self.alg = alg
        self.pad = pad
        self.encoder = PlainEncoder(alg.network.encoder)
        self.actor = copy.deepcopy(alg.network.actor)
        self.critics = TwinCritics(alg.network.critics)
        self.target_critics = frozen_copy(TwinCritics(alg.target_critics))
        self.encoder_optim = optim(self.encoder.parameters())
        self.actor_optim = optim(self.actor.parameters())
        self.critic_optim = optim(self.critics.parameters())

    def noise_std(self, step: int) -> Tensor:
        """Standard deviation of the noise after ``step`` environment steps."""
        return self.alg.noise_std(torch.tensor(step, dtype=torch.float64))

    @torch.no_grad()
    def act(self, obs: np.ndarray, step: int) -> np.ndarray:
        """An action (A,) with exploration noise for one observation (C, H, W)."""
        action = self.actor(self.encoder(torch.as_tensor(obs)[None]))
        noise = self.noise_std(step) * torch.randn_like(action)
        return (action + noise).clamp(EDGE - 1, 1 - EDGE)[0].numpy()

    def update(self, batch: Transition, step: int) -> Metrics:
        """Learn from one batch, at environment step ``step``."""
        std = self.noise_std(step)
        dtype = next(self.encoder.parameters()).dtype
        obs, next_obs = self.shift(batch.obs.to(dtype)), self.shift(batch.next_obs.to(dtype))
        encoded = self.encoder(obs)
        with torch.no_grad():
            next_encoded = self.encoder(next_obs)
        critic_loss = self.update_critics(batch, encoded, next_encoded, std)
        actor_loss = self.update_actor(encoded.detach(), std)
        learned, targets = self.critics.parameters(), self.target_critics.parameters()
        for new, old in zip(learned, targets, strict=True):
            old.data.copy_(self.alg.tau * new.data + (1 - self.alg.tau) * old.data)
        return {"critic_loss": critic_loss, "actor_loss": actor_loss}

    def update_critics(
        self, batch: Transition, encoded: Tensor, next_encoded: Tensor, std: Tensor
    ) -> Tensor:
        """Regress encoder and critics on the target; their losses are summed."""
        with torch.no_grad():
            next_action = self.sample_action(next_encoded, std)
            next_q = torch.minimum(*self.target_critics(next_encoded, next_action))
            target_q = batch.reward + batch.discount * next_q
        first_q, second_q = self.critics(encoded, batch.action)
        loss = F.mse_loss(first_q, target_q) + F.mse_loss(second_q, target_q)
        descend(loss, self.encoder_optim, self.critic_optim)
        return loss.detach()

    def update_actor(self, encoded: Tensor, std: Tensor) -> Tensor:
        """Climb the lower critic, which gets gradients as well, to no use."""
        action = self.sample_action(encoded, std)
        loss = -torch.minimum(*self.critics(encoded, action)).mean()
        descend(loss, self.actor_optim)
        return loss.detach()

    def sample_action(self, encoded: Tensor, std: Tensor) -> Tensor:
        """Actions (B, A) with clipped noise; gradients pass the bounds unchanged."""
        mean = self.actor(encoded)
        clip = self.alg.noise_clip
        action = mean + (std * torch.randn_like(mean)).clamp(-clip, clip)
        return action - action.detach() + action.detach().clamp(EDGE - 1, 1 - EDGE)

    def shift(self, images: Tensor) -> Tensor:
        """Float images (B, C, H, W), each moved at random, interpolated bilinearly."""
        height, width = images.shape[2:]
        down, right = torch.randint(2 * self.pad + 1, (2, len(images), 1)).to(images.dtype)
        rows = centres(down + torch.arange(height), height + 2 * self.pad)
        columns = centres(right + torch.arange(width), width + 2 * self.pad)
        shape = len(images), height, width
        grid = torch.stack([columns[:, None].expand(shape), rows[:, :, None].expand(shape)], dim=-1)
        padded = F.pad(images, (self.pad,) * 4, mode="replicate")
        return F.grid_sample(padded, grid, mode="bilinear", align_corners=False)


def centres(pixels: Tensor, size: int) -> Tensor:
    """Where the centres of ``pixels`` lie if the edges of ``size`` pixels are at -1 and 1."""
    return (2 * pixels + 1) / size - 1


def descend(loss: Tensor, *optims: Optimizer) -> None:
    """A step of each of the optimizers."""
    for optim in optims:
        optim.zero_grad()
    loss.backward()
    for optim in optims:
        optim.step()


class PlainEncoder(nn.Sequential):
    """The layers of an encoder, on contiguous images (B, C, H, W), to (B, R)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(*copy.deepcopy(list(encoder)))
        self.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images / 255 - 0.5).flatten(1)


class TwinCritics(nn.Module):
    """Two perceptrons on one trunk: a pair of (B,)."""

    def __init__(self, critics: TrunkCritics) -> None:
        super().__init__()
        ensemble = critics.critics.ensemble
        self.trunk = copy.deepcopy(critics.trunk)
        self.first, self.second = (single_member(ensemble, index) for index in range(2))

    def forward(self, encoded: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.cat([self.trunk(encoded), action], dim=-1)
        return self.first(features).squeeze(-1), self.second(features).squeeze(-1)


def single_member(ensemble: EnsembleMLP, index: int) -> nn.Sequential:
    """A perceptron with the weights of one member."""
    layers = copy.deepcopy(list(ensemble.layers))
    for place, layer in enumerate(layers):
        if isinstance(layer, EnsembleLinear):
            in_dim, out_dim = layer.weight.shape[1:]
            linear = layers[place] = nn.Linear(in_dim, out_dim, dtype=layer.weight.dtype)
            linear.weight.data.copy_(layer.weight[index].t())
            linear.bias.data.copy_(layer.bias[index, 0])
    return nn.Sequential(*layers)


class EpisodeReplay:
    """Whole episodes in NumPy; a transition sums exactly ``n_step`` rewards. It forgets none."""

    def __init__(self, *, batch_size: int, discount: float, n_step: int, seed: int) -> None:
        self.batch_size, self.discount, self.n_step = batch_size, discount, n_step
        self.random = np.random.default_rng(seed)
        self.episodes: list[tuple[np.ndarray, ...]] = []
        self.steps: list[tuple[Any, ...]] = []

    def add(self, obs: Any, action: Any, reward: float, terminated: bool) -> None:
        """A step of the running episode, from ``obs``."""
        self.steps.append((obs, action, np.float32(reward), np.float32(not terminated)))

    def end_episode(self, obs: np.ndarray) -> None:
        """Keep the running episode, which came to ``obs``; from now on it can be drawn."""
        images, *others = zip(*self.steps, strict=True)
        self.episodes.append((np.stack([*images, obs]), *map(np.stack, others)))
        self.steps = []

    def sample(self) -> Transition:
        """A batch of them, on the CPU."""
        rows = [self.draw() for _ in range(self.batch_size)]
        return Transition(*(torch.from_numpy(np.stack(c)) for c in zip(*rows, strict=True)))

    def draw(self) -> tuple[np.ndarray, ...]:
        """The fields of one transition, each episode being as likely."""
        episode = self.random.integers(len(self.episodes))
        images, actions, rewards, continues = self.episodes[episode]
        start = self.random.integers(len(rewards) - self.n_step + 1)
        reward, discount = np.zeros((), np.float32), np.ones((), np.float32)
        end = start + self.n_step
        for step in range(start, end):
            reward += discount * rewards[step]
            discount *= self.discount * continues[step]
        return images[start], actions[start], reward, discount, images[end]


def main() -> None:
    """Train as the config says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where time.csv goes")
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        cfg = compose("config", arguments.overrides)
    train(cfg, arguments.folder)


def train(cfg: DictConfig, folder: Path) -> None:
    """Learn to ``trainer.total_steps``, from nothing: act, update, step, as ours."""
    seed_everything(cfg.seed)
    vector = build(cfg.env)
    env: gymnasium.Env = vector.envs[0]
    network = build(cfg.network, env.observation_space, env.action_space)
    optim = partial(torch.optim.Adam, lr=cfg.alg.optim.lr)
    drqv2 = PlainDrQv2(build(cfg.alg, network), optim=optim, pad=cfg.processor.pad)
    replay = EpisodeReplay(
        batch_size=cfg.dataset.batch_size,
        discount=cfg.dataset.discount,
        n_step=cfg.dataset.n_step,
        seed=cfg.seed,
    )
    logger = Logger(folder, [])
    pace = build(cfg.trainer.pace)
    pace.begin(cfg.trainer.total_steps, num_envs=1)
    warmup = pace.warmup_steps
    env.action_space.seed(cfg.seed)
    obs, _ = env.reset(seed=cfg.seed)
    updates, start, phases = 0, time.monotonic(), Phases()
    for step in range(1, cfg.trainer.total_steps + 1):
        action = env.action_space.sample() if step <= warmup else drqv2.act(obs, step - 1)
        phases.lap("environment")
        due = pace.count_updates(step) - pace.count_updates(step - 1)
        for _ in range(due if replay.episodes else 0):
            batch = replay.sample()
            phases.lap("sample")
            drqv2.update(batch, step - 1)
            phases.lap("update")
            updates += 1
        next_obs, reward, terminated, truncated, _ = env.step(action)
        replay.add(obs, action, float(reward), terminated)
        obs = next_obs
        if terminated or truncated:
            replay.end_episode(obs)
            obs, _ = env.reset()
        phases.lap("environment")
        if step % cfg.trainer.log_every == 0:
            frames = step * vector.metadata["action_repeat"]
            clock = Clock(step, frames, updates, 0, time.monotonic() - start)
            logger.log("time", phases.take(), clock)


if __name__ == "__main__":
    main()
