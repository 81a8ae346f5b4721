"""Evaluates runs after training, as they were evaluated during it."""

import logging
import shutil
import traceback
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import VectorEnv

from research.config import build
from research.errors import UserError
from research.explain import one_line
from research.process import error_line
from research.ranges import PositiveInt, Seed
from research.results.evaluation_table import confusion_table, evaluation_table
from research.results.find import Found
from research.results.history import Evaluated, add_evaluation, read_evaluations
from research.results.load import CheckpointName, LoadedPolicy, load
from research.results.predictions import Predictions
from research.results.statistics import iqm, stratified_bootstrap
from research.training.evaluation import run_episodes, summarise, validate
from research.training.infos import Infos

CHOSEN = (
    "The best checkpoint was chosen by these episodes, or the first of them, so luck is in their "
    "returns; seed=... evaluates in others."
)

log = logging.getLogger(__name__)


class EvaluationOptions(NamedTuple):
    """How to evaluate; by default as in training, which gives the numbers of ``eval.csv``.

    Attributes:
        checkpoint: the one with the best score, or the last.
        episodes: number of episodes; None for the run's own.
        seed: of the episodes; None for the run's own.
        num_envs: environments at once; None for the run's own, or fewer if there are fewer
            episodes.
        device: as the config key.
        trusted_modules: modules of yours from which a run's config may build parts.
        env: changes of the run's group ``env``.

    """

    checkpoint: CheckpointName = "best"
    episodes: PositiveInt | None = None
    seed: Seed | None = None
    num_envs: PositiveInt | None = None
    device: str = "cpu"
    trusted_modules: Sequence[str] = ()
    env: Mapping[str, Any] = MappingProxyType({})


def evaluate_runs(runs: Sequence[Found], options: EvaluationOptions) -> bool:
    """Evaluate every run, note the results in its directory, and print a table.

    Returns:
        whether all were evaluated; for every other there is a line that says why.

    """
    evaluated: dict[Path, Evaluated] = {}
    num_failed = 0
    for run in runs:
        try:
            if run.problem:
                raise UserError(run.problem)
            read_evaluations(run.folder)  # first, since a damaged file cannot be added to
            evaluation = evaluate_run(run.folder, options)
            evaluated[run.folder] = evaluation
            add_evaluation(run.folder, evaluation)
        except Exception as error:  # of a user's environment, too: the others go on
            num_failed += 1
            if (line := one_line(error)) is None:
                log.error("%s", "".join(traceback.format_exception(error)))
            line = line or error_line(error)
            log.error("%s", line if str(run.folder) in line else f"{run.folder}: {line}")
    width = shutil.get_terminal_size((1000, 0)).columns  # a file has no width
    for line in evaluation_table(evaluated, width) + confusion_table(evaluated, width):
        log.info("%s", line)
    if any("return" in each.results for each in evaluated.values()) and chose_best(options):
        log.info(CHOSEN)
    return num_failed == 0


def chose_best(options: EvaluationOptions) -> bool:
    """Whether the best checkpoints were chosen by the episodes of this evaluation."""
    return options.checkpoint == "best" and options.seed is None and not options.env


def evaluate_run(folder: Path, options: EvaluationOptions) -> Evaluated:
    """A run's evaluation, in environments or on the examples that its dataset holds out.

    Raises:
        UserError: it cannot be loaded or built, or an option does not suit it.

    """
    policy = load(
        folder, options.checkpoint, device=options.device, trusted_modules=options.trusted_modules
    )
    changes = dict(options.env)
    if options.num_envs is not None:
        changes["num_envs"] = options.num_envs
    seed = policy.config.seed if options.seed is None else options.seed
    settings = {
        "checkpoint": options.checkpoint,
        "step": policy.step,
        "seed": seed,
        "device": options.device,
        "env": changes,
    }
    with closing(policy.make_vector(episodes=options.episodes or 0, **changes)) as env:
        if isinstance(env, VectorEnv):
            episodes = options.episodes or policy.config.trainer.evaluation.episodes
            results = evaluate_in(env, policy, episodes, seed)
            return Evaluated({**settings, "episodes": episodes}, results)
        if options.episodes or changes:
            given = "episodes" if options.episodes else f"env.{next(iter(changes))}"
            raise UserError(f"{given}=... has no meaning for a run that is evaluated on examples")
        return Evaluated(settings, evaluate_on_examples(env, policy, seed))


def evaluate_in(
    env: VectorEnv[Any, Any, Any], policy: LoadedPolicy, num_episodes: int, seed: int
) -> dict[str, Any]:
    """The metrics of episodes, and statistics of their returns."""
    episodes = run_episodes(
        policy.policy,
        env,
        num_episodes=num_episodes,
        seed=seed,
        step=policy.step,
        infos=Infos(policy.config.trainer.infos or {}),
    )
    returns = [episode["return"] for episode in episodes]
    interval = stratified_bootstrap([np.array(returns)], iqm)
    statistics = {
        "mean": float(np.mean(returns)),
        "median": float(np.median(returns)),
        "iqm": float(interval.estimate),
        "iqm_low": float(interval.low),
        "iqm_high": float(interval.high),
    }
    return {"metrics": summarise(episodes), "return": statistics, "episodes": episodes}


def evaluate_on_examples(env: Any, policy: LoadedPolicy, seed: int) -> dict[str, Any]:
    """The metrics of the examples held out, and what their predictions tell."""
    config = policy.config
    dataset: Any = build(config.dataset, env, config.seed)
    if not getattr(dataset, "num_validation", 0):
        raise UserError(f"dataset={config.dataset._target_} holds out no examples")
    evaluation = build(config.trainer.evaluation)
    every = evaluation.every or dataset.batches_per_epoch
    batches = dataset.validation_batches(*evaluation.batches_at(policy.step, every))
    predictions = Predictions(policy.policy)
    metrics = validate(policy.policy, predictions.note(batches), seed=seed, step=policy.step)
    space = policy.spaces.action
    num_classes = int(space.n) if isinstance(space, Discrete) else None
    return {"metrics": metrics, **predictions.summarise(num_classes)}
