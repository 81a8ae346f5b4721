"""Train what the config names: ``python train.py alg=td3 env=cheetah``. Add ``-m`` to sweep."""

from contextlib import closing
from functools import partial

from omegaconf import DictConfig

from research.app import command
from research.config import build, build_env
from research.training.run import Run


@command
def main(cfg: DictConfig, run: Run) -> float:
    """Build each part in data-flow order, train, and return the score that a sweep optimises."""
    from research.machine.device import choose_device, make_current
    from research.training.saving.initialise import initialise
    from research.training.seed import seed_everything

    device = choose_device(cfg.device)
    make_current(device)
    seed_everything(run.seed)
    with closing(build(cfg.env)) as env:
        data = build(cfg.dataset, env, run.seed)
        processor = build(cfg.processor, data.observation_space, data.action_space).to(device)
        network = build(cfg.network, processor.observation_space, processor.action_space).to(device)
        alg = build(cfg.alg, network)
        initialise(alg, processor, run, cfg.init_from, parts=cfg.init_parts, strict=cfg.init_strict)
        logger = build(cfg.logger, run.folder)
        episodes = cfg.trainer.evaluation.episodes
        make_env = partial(build_env, cfg.env, episodes=episodes)  # made when needed
        trainer = build(cfg.trainer, alg, processor, data, env, make_env, logger, run)
        return trainer.train()


if __name__ == "__main__":
    main()
