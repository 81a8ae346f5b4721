"""The parts of a run, built as ``train.py`` builds them."""

from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from research.config import build, build_env
from research.status import Status
from research.training.lockstep import Seat
from research.training.run import Run
from research.training.seed import seed_everything
from research.training.trainer import Trainer


def build_trainer(folder: Path, cfg: DictConfig, seat: Seat | None = None) -> Trainer:
    """What a config names, to train in a folder."""
    folder.mkdir(exist_ok=True)
    run = Run(folder, Status(folder), cfg.seed, {}, seat)
    seed_everything(cfg.seed)
    env = build(cfg.env)
    dataset = build(cfg.dataset, env, cfg.seed)
    processor = build(cfg.processor, dataset.observation_space, dataset.action_space)
    network = build(cfg.network, processor.observation_space, processor.action_space)
    alg, logger = build(cfg.alg, network), build(cfg.logger, folder)
    make_env = partial(build_env, cfg.env, episodes=cfg.trainer.evaluation.episodes)
    return build(cfg.trainer, alg, processor, dataset, env, make_env, logger, run)
