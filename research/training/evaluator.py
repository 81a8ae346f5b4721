"""Scores the policy of a run while it is trained, and films it."""

from collections.abc import Callable
from functools import partial
from typing import Any

from gymnasium.vector import VectorEnv

from research.datasets.base import Dataset, ValidationDataset
from research.parallel.process_group import from_first
from research.signals import StopRequest
from research.training.evaluation import ALWAYS_EVALUATED, Evaluation, evaluate, validate
from research.training.filming import Film, Videos
from research.training.infos import Infos
from research.training.policy import Policy
from research.training.requirements import epoch_steps
from research.training.score import Score
from research.training.seed import preserve_random_state


class Evaluator:
    """Evaluates in environments of its own if the run has any, else on examples held out.

    Of the ranks of a data-parallel run the first one steps the environments, and each validates on
    its share of the examples.

    Args:
        policy: what is evaluated.
        dataset: of the run.
        env: the training environments, or only their spaces.
        make_env: makes the evaluation environments, when they are first needed; and with
            ``renders=True``, those of videos.
        evaluation: when, and on how much.
        video_every: steps between two videos; None for none.
        infos: those of the environments that the algorithm gets.
        seed: of the run.
        rank: of this process.

    Attributes:
        every: steps between two evaluations.

    Raises:
        ValueError: for videos without an environment, or no ``every`` without epochs.

    """

    def __init__(
        self,
        policy: Policy,
        dataset: Dataset,
        env: Any,
        make_env: Callable[..., Any],
        evaluation: Evaluation,
        video_every: int | None,
        infos: Infos,
        *,
        seed: int,
        rank: int,
    ) -> None:
        self.policy = policy
        self.dataset = dataset
        self.has_envs = isinstance(env, VectorEnv)
        self.make_env = make_env
        self.env: Any = None
        self.evaluation = evaluation
        self.every = evaluation.every or epoch_steps(dataset, "evaluation.every=null")
        self.videos: Videos | None = None
        if video_every is not None:
            if not self.has_envs:
                raise ValueError(f"video_every={video_every} needs an environment; set it to null")
            self.videos = Videos(video_every, partial(make_env, renders=True))
        self.infos = infos
        self.seed = seed
        self.rank = rank

    def begin(self) -> None:
        """Make the environments of videos, so that it is known early if they show nothing."""
        if self.videos is not None:
            self.videos.begin(self.seed)

    def find_metric(self, score: Score, step: int, stop: StopRequest) -> None:
        """Refuse a ``score.metric`` that evaluations lack, if necessary by making one."""
        if not self.has_envs:
            score.find(self.validate(step, 0, 1, stop))
        elif score.metric.removeprefix("eval/") not in ALWAYS_EVALUATED:
            score.find(self.evaluate(step, stop))

    def evaluate(self, step: int, stop: StopRequest) -> dict[str, float]:
        """The evaluation's metrics by name.

        Raises:
            Preempted: ``stop`` was made meanwhile.

        """
        if not self.has_envs:
            return self.validate(step, *self.evaluation.batches_at(step, self.every), stop)
        return from_first(self.run_episodes(step, stop) if self.rank == 0 else {})

    def run_episodes(self, step: int, stop: StopRequest) -> dict[str, float]:
        """The metrics of an evaluation in environments."""
        if self.env is None:
            with preserve_random_state():
                self.env = self.make_env()
        return evaluate(
            self.policy,
            self.env,
            num_episodes=self.evaluation.episodes,
            seed=self.seed,
            step=step,
            infos=self.infos,
            interruptible=stop.at_once,
        )

    def validate(
        self, step: int, first: int, count: int | None, stop: StopRequest
    ) -> dict[str, float]:
        """The metrics of ``count`` batches of the examples held out, or of all."""
        assert isinstance(self.dataset, ValidationDataset)
        batches = self.dataset.validation_batches(first, count)
        return validate(self.policy, batches, seed=self.seed, step=step, each=stop.check)

    def film(self, step: int, before: int, stop: StopRequest, *, is_last: bool) -> Film | None:
        """A video of the first episode of the evaluation at ``step``, if one is due.

        Args:
            step: steps of the run so far.
            before: those at the evaluation before.
            stop: ends it.
            is_last: whether the run is at its end, of which there is always one.

        """
        if self.videos is None or not (is_last or self.videos.are_due(step, before)):
            return None
        return self.videos.film(
            self.policy,
            seed=self.seed,
            step=step,
            infos=self.infos,
            interruptible=stop.at_once,
        )

    def close(self) -> None:
        """Close its environments."""
        for env in (self.env, self.videos.env if self.videos else None):
            if env is not None:
                env.close()
