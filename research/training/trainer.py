"""The training loop of online, offline and supervised learning."""

import logging
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

from gymnasium.vector import VectorEnv

from research.algs.base import Algorithm
from research.batches import Repeatable, to_device
from research.datasets.base import (
    CountableDataset,
    Dataset,
    ExtensibleDataset,
    OnlineDataset,
    WaitingDataset,
)
from research.errors import Preempted, UserError, override
from research.machine.memory import peak_memory
from research.parallel.process_group import copy_from_first
from research.processors.base import Processor
from research.ranges import Decay, NonNegativeInt, PositiveFloat, PositiveInt
from research.signals import StopRequest
from research.training.collector import Collector
from research.training.descent import ScheduleFactory
from research.training.episodes import mean_metrics
from research.training.evaluation import Evaluation
from research.training.evaluator import Evaluator
from research.training.execution import Execution
from research.training.infos import Infos
from research.training.learner import Learner
from research.training.meter import Phases
from research.training.pace import Pace
from research.training.policy import Policy
from research.training.precision import Precision
from research.training.profile import Profile
from research.training.records.clock import Clock
from research.training.records.logger import Logger
from research.training.records.progress import Progress
from research.training.requirements import (
    check_parts,
    count_steps,
    share_dataset,
)
from research.training.run import Run
from research.training.saving.checkpoint import Checkpoint, load_newest
from research.training.saving.checkpoints import Checkpoints
from research.training.saving.retention import holds_checkpoints
from research.training.saving.spaces import Spaces, write_spaces
from research.training.score import Score
from research.training.seed import (
    derive_seed,
    random_state,
    restore_random_state,
    seed_everything,
)
from research.training.shared_collector import SharedCollector

CollectorFactory: TypeAlias = Callable[..., Collector]

log = logging.getLogger(__name__)


class Trainer:
    """Trains for ``total_steps`` steps, and evaluates, logs and saves on the way.

    With a pace a step is an environment step (summed over the environments), without one it is an
    update. A period counts steps; with several environments its event comes at the first step that
    reaches it.

    A step of an off-policy run chooses actions, makes the updates that are due from the data
    collected before, and only then stores what the actions led to. So environments in processes of
    their own can step during the updates. On-policy, the updates come after the step.

    In a data-parallel run every rank has a trainer, which learns from its share of the batches and
    validates on its share of the examples; only the trainer of rank 0 writes the run directory.

    To find a wrong ``score.metric`` early, a new run validates on one batch before its first
    update, or evaluates once in environments if the metric is one of their infos.

    Args:
        alg: learns from processed batches.
        processor: processes batches and observations.
        dataset: gives batches; a run with a pace fills it.
        env: the training environments, or only their spaces.
        make_env: makes the evaluation environments, when they are first needed; and with
            ``renders=True``, those of videos.
        logger: gets every metric.
        run: the run directory, its status, the seed.
        total_steps: length of the training, a multiple of the number of environments.
        total_epochs: the same in passes over the dataset, if ``total_steps`` is None.
        pace: how many updates belong to how many environment steps; None to learn from the dataset
            as it is.
        collector: makes what steps the environments; ignored without a pace.
        infos: shapes of the environments' infos that reach the algorithm and the dataset, by name;
            None for none.
        schedule: makes a learning-rate schedule for each optimizer; None for constant rates.
        max_grad_norm: bound on the norm of each optimizer's gradients, above 0; None for no bound.
        precision: of the networks' arithmetic, ``fp32``, ``bf16`` or ``fp16``; weights are fp32.
        accumulate: parts into which a batch is cut to save memory, at least 1.
        ema_decay: of averaged weights, by which the policy is evaluated, in (0, 1); None for none.
        execution: of updates: ``eager``; ``compile``: torch.compile makes one graph of
            each; ``graph``: CUDA graphs repeat updates and actions; or ``auto``: on a GPU
            graphs, elsewhere compiled if the run is long and a compiler is there.
        prefetch: whether a thread gathers the next batch during an update, which changes no number;
            None: only on a GPU, and only if the dataset supports it.
        profile: whether to record where the time of some steps goes, into ``profile/``.
        log_every: steps between rows of metrics; every evaluation adds a row.
        evaluation: when, and on how much, the run is evaluated.
        video_every: steps between two videos of an episode, each made by an evaluation in
            environments; None for none.
        score: the metric that makes a checkpoint the best, and how many evaluations without a
            better one end the training.
        checkpoints: when they are saved, and how many are kept.
        devices: ranks of each node that share every batch, each on a GPU if there are any;
            ``train.py`` starts them.
        num_seeds: runs in lockstep, from this seed on; ``train.py`` makes a trainer for each.

    Raises:
        ValueError: for parts or lengths that do not go together.

    """

    def __init__(
        self,
        alg: Algorithm,
        processor: Processor,
        dataset: Dataset,
        env: Any,
        make_env: Callable[..., Any],
        logger: Logger,
        run: Run,
        *,
        total_steps: PositiveInt | None,
        total_epochs: PositiveInt | None,
        pace: Pace | None,
        collector: CollectorFactory | None,
        infos: Mapping[str, Sequence[NonNegativeInt]] | None,
        schedule: ScheduleFactory | None,
        max_grad_norm: PositiveFloat | None,
        precision: Precision,
        accumulate: PositiveInt,
        ema_decay: Decay | None,
        execution: Execution,
        prefetch: bool | None,
        profile: bool,
        log_every: PositiveInt,
        evaluation: Evaluation,
        video_every: PositiveInt | None,
        score: Score,
        checkpoints: Checkpoints,
        devices: PositiveInt,
        num_seeds: PositiveInt,
    ) -> None:
        self.alg = alg
        self.processor = processor
        self.dataset = dataset
        self.env = env
        self.logger = logger
        self.run = run
        self.total_steps = count_steps(dataset, total_steps, total_epochs)
        self.total_epochs = total_epochs
        self.score = score
        self.log_every = log_every
        self.profiles = profile
        self.profile: Profile | None = None
        self.checkpoints = checkpoints
        self.rank, self.num_ranks = share_dataset(dataset, devices)
        check_parts(alg, processor, dataset, env, collects=pace is not None)
        self.policy = Policy(alg, processor, precision)
        self.pace = pace
        self.infos = Infos(infos or {})
        self.collector: Collector | SharedCollector | None = None
        self.step_size = 1
        if pace is not None:
            if collector is None:
                raise ValueError(
                    "collector is null, but pace is not; to take no environment steps, use "
                    "trainer.pace=null"
                )
            self.step_size = env.num_envs
            pace.begin(self.total_steps, self.step_size)
            self.store_more(self.infos.shapes)
            self.collector = self.make_collector(collector)
        if self.total_steps % self.step_size:
            raise ValueError(
                f"total_steps must be a multiple of env.num_envs={self.step_size}, "
                f"got {self.total_steps}"
            )
        total_updates = pace.count_updates(self.total_steps) if pace else self.total_steps
        if total_updates == 0:
            raise ValueError(
                f"total_steps={self.total_steps} is too short for a single update at this pace"
            )
        self.learner = Learner(
            alg,
            processor,
            dataset,
            self.policy.device,
            total_updates=total_updates,
            schedule=schedule,
            max_grad_norm=max_grad_norm,
            prefetch=prefetch,
            precision=precision,
            accumulate=accumulate,
            ema_decay=ema_decay,
            execution=execution,
            seat=run.seat,
        )
        self.evaluator = Evaluator(
            Policy(self.learner.average or alg, processor, precision),
            dataset,
            env,
            make_env,
            evaluation,
            video_every,
            self.infos,
            seed=run.seed,
            rank=self.rank,
        )
        if self.learner.steps.graphs is not None:
            for policy in (self.policy, self.evaluator.policy):
                policy.capture(self.learner.steps.graphs, self.learner.level)
        self.step = 0
        self.seconds = 0.0
        self.finished: list[dict[str, float]] = []

    def store_more(self, info: Mapping[str, tuple[int, ...]]) -> None:
        """Let the dataset store the algorithm's values and these infos with every step.

        Raises:
            ValueError: it cannot, or the random actions of a warm-up would lack such values.

        """
        extras = dict(self.alg.extras)
        if not extras and not info:
            return
        if not isinstance(self.dataset, ExtensibleDataset):
            raise ValueError(
                f"a {type(self.dataset).__name__} stores nothing besides the environments' steps, "
                f"but {[*extras, *info]} are to be stored; try dataset=replay"
            )
        if extras and self.pace is not None and self.pace.warmup_steps:
            raise ValueError(
                f"{type(self.alg).__name__} stores {list(extras)} with each of its actions, which "
                "random ones lack; set trainer.pace.warmup_steps=0"
            )
        self.dataset.hold(extras, info)

    def make_collector(self, make: CollectorFactory) -> Collector | SharedCollector:
        """What steps the environments, or in a data-parallel run those of rank 0."""
        make = partial(make, self.env, self.policy, seed=self.run.seed, infos=self.infos)
        if self.num_ranks == 1:
            return make(dataset=self.dataset)
        if self.rank > 0:
            self.env.close()
        assert isinstance(self.dataset, OnlineDataset)
        return SharedCollector(lambda dataset: make(dataset=dataset), self.dataset, self.rank)

    def train(self, max_updates: float = math.inf) -> float:
        """Train to ``total_steps``, from the run directory's last checkpoint if it has one.

        SIGINT, SIGTERM, SIGUSR1 or SIGUSR2 ends the training after the current step, with a
        checkpoint.

        Args:
            max_updates: of a trial, which then ends with an evaluation and a checkpoint.

        Returns:
            the best value of ``score.metric``.

        Raises:
            Preempted: one of these signals was received.
            UserError: a metric or a weight became NaN or infinite, the evaluations lack
                ``score.metric``, or the run's checkpoints are damaged, do not fit this code or
                config, or lie beyond ``total_steps``.

        """
        request = nullcontext(self.run.seat.stop) if self.run.seat else StopRequest()
        with request as self.stop, closing(self):  # closing takes its time
            try:
                self.run_to_end(max_updates)
            except Preempted:  # raised during an evaluation, or a wait for examples
                self.halt_if_asked()
                raise
            assert self.score.best_score is not None
            if self.rank == 0:
                self.logger.finish(self.run.config, {"best/score": self.score.best_score})
        return self.score.best_score

    def run_to_end(self, max_updates: float) -> None:
        """Start or resume, and take all remaining steps, or those of a trial."""
        if isinstance(self.dataset, WaitingDataset):
            self.dataset.wait_in(self.stop.at_once)
        self.start()
        terminal = None if self.run.seat is None else False  # one bar for each would be too much
        progress = Progress(self.total_steps, self.step, terminal=terminal)
        with closing(progress) as self.progress:
            if self.score.evaluated_step < self.step and self.reached(self.evaluator.every):
                self.evaluate_and_save()  # it was stopped before this, or total_steps is lower now
            while self.step < self.total_steps and not self.score.is_exhausted():
                self.halt_if_asked()
                self.advance()
                if self.profile is not None:
                    self.profile.advance(self.step, self.learner.updates)
                if self.learner.updates >= max_updates:
                    if self.score.evaluated_step < self.step:
                        self.evaluate_and_save()
                    break

    def start(self) -> None:
        """Resume from the last checkpoint, or begin a new run."""
        if is_begun := holds_checkpoints(self.run.folder):
            self.resume()
        if self.rank == 0:
            own_spaces = self.env.metadata.get("own_spaces", (None, None))
            spaces = self.dataset.observation_space, self.dataset.action_space
            write_spaces(self.run.folder, Spaces(*spaces, *own_spaces))
            self.run.status.expect(self.total_steps)
            self.logger.rewind(self.step if is_begun else -1)
            self.evaluator.begin()
            self.logger.start(self.run.config)
        if not is_begun:
            self.fit_processor()
        if self.num_ranks > 1:
            copy_from_first(self.alg)
            if self.learner.average is not None:
                copy_from_first(self.learner.average)
        self.alg.train()
        self.processor.train()
        if not is_begun:  # so that errors show before an epoch is spent
            self.evaluator.find_metric(self.score, self.step, self.stop)
            self.announce()
        if self.collector is not None:
            self.collector.start()
        if self.profiles and self.rank == 0:
            self.profile = self.make_profile()
        self.phases = Phases()
        self.checkpoints.begin(self.step)
        self.started = time.monotonic() - self.seconds
        self.logged = self.clock()

    def announce(self) -> None:
        """Say what begins, before the first row of metrics."""
        if self.rank == 0:
            name, seed = self.run.config.get("name"), self.run.seed
            steps, device = f"{self.total_steps:,} steps", self.policy.device
            log.info("%s, seed %d: %s on %s, into %s", name, seed, steps, device, self.run.folder)

    def make_profile(self) -> Profile:
        """A profile of the phases of a step."""
        profile = Profile(self.run.folder, self.policy.device, self.learner.updates)
        if self.collector is not None:
            profile.watch("environment", self.collector, "begin_step", "end_step")
            profile.watch("act", self.policy, "respond", "observe")
        profile.watch("sample", self.learner, "sample", "prepare")
        profile.watch("update", self.learner, "learn")
        profile.watch("log", self, "log_training")
        profile.watch("evaluate", self.evaluator, "evaluate")
        profile.watch("checkpoint", self, "save")
        return profile

    def fit_processor(self) -> None:
        """Fit the processor to all training batches, if the dataset can iterate over them."""
        if isinstance(self.dataset, CountableDataset):
            self.processor.eval()
            batches, device = self.dataset.training_batches, self.policy.device
            self.processor.fit(
                Repeatable(lambda: (to_device(batch, device) for batch in batches()))
            )

    def advance(self) -> None:
        """Take a step and make its updates; log, evaluate and save if they are due."""
        learns_first = self.pace is None or self.pace.learns_first
        if self.collector is not None and self.pace is not None:
            self.collector.begin_step(self.step, at_random=self.step < self.pace.warmup_steps)
            self.phases.lap("environment")
        if learns_first:
            self.learn(self.step + self.step_size)
        if self.collector is not None:
            self.finished += self.collector.end_step()
            self.phases.lap("environment")
        self.step += self.step_size
        if not learns_first:
            self.learn(self.step)
        elif self.learner.updates < self.updates_due(self.step + self.step_size):
            self.learner.prepare()
        self.progress.update(self.step)
        evaluates = self.reached(self.evaluator.every)
        if evaluates or self.reached(self.log_every):
            self.log_training()
        if evaluates:
            self.evaluate_and_save()
        elif self.reached(self.checkpoints.every) or self.checkpoints.is_overdue():
            self.save(is_best=False)

    def halt_if_asked(self) -> None:
        """If a signal asked the run to end, save a checkpoint unless this step has one, and end."""
        if not self.stop.made:
            return
        if self.checkpoints.saved_step < self.step:
            self.save(is_best=False)
        raise Preempted(
            f"{self.stop.made}: stopped at step {self.step} of {self.total_steps}; resume with "
            + shlex.quote(override("hydra.run.dir", self.run.folder))
        )

    def reached(self, every: int | None) -> bool:
        """Whether the last step reached a multiple of ``every``, or the end."""
        crossed = every and self.step // every > (self.step - self.step_size) // every
        return bool(crossed) or self.step >= self.total_steps

    def learn(self, step: int) -> None:
        """Make the updates that belong to the first ``step`` steps."""
        due = self.updates_due(step)
        while self.learner.updates < due:
            can_prepare = self.collector is None or self.learner.updates + 1 < due
            if self.num_ranks > 1:  # so that no checkpoint has to hold the generators of all ranks
                seed = derive_seed(self.run.seed, "update", self.learner.updates, self.rank)
                seed_everything(seed)
            self.learner.update(self.step, self.phases, can_prepare=can_prepare)

    def updates_due(self, step: int) -> int:
        """Updates that belong to the first ``step`` steps.

        0 while the dataset is empty; these updates are made later.
        """
        if self.pace is None:
            return step
        # not isinstance, which takes as long as a sample: this is asked twice a step
        return self.pace.count_updates(step) if len(cast(OnlineDataset, self.dataset)) else 0

    def log_training(self) -> None:
        """Log the metrics since the last row."""
        clock = self.clock()
        means = self.learner.take_metrics()
        if self.rank > 0:
            return
        episodes, self.finished = mean_metrics(self.finished), []
        if means:
            self.logger.log("train", means, clock)
        if episodes:
            self.logger.log("env", episodes, clock)
        seconds = max(clock.seconds - self.logged.seconds, 1e-9)
        speed = (clock.step - self.logged.step) / seconds
        self.logged = clock
        used = {"steps_per_s": speed, **peak_memory(self.policy.device)}
        self.logger.log("time", {**self.phases.take(), **used}, clock)
        self.run.status.update(step=self.step, score=self.score.best_score, speed=speed)
        shown = {"return": episodes["return"]} if episodes else {}
        self.progress.report({**shown, **means})

    def evaluate_and_save(self) -> None:
        """Score the policy; save a checkpoint, and keep the best."""
        self.phases.lap("other")
        metrics = self.evaluator.evaluate(self.step, self.stop)
        if self.rank == 0:  # filmed first: a signal meanwhile makes the run repeat the evaluation
            before, is_last = self.score.evaluated_step, self.step >= self.total_steps
            if film := self.evaluator.film(self.step, before, self.stop, is_last=is_last):
                self.logger.log_video("eval/video", *film, self.clock())
        self.phases.lap("evaluate")
        if self.rank == 0:
            self.logger.log("eval", metrics, self.clock())
        score, is_best = self.score.take(metrics, self.step)
        self.learner.take_score(score)
        self.progress.report({"score": score})
        self.save(is_best=is_best)

    def clock(self) -> Clock:
        """The progress of training, for a log row."""
        frames = self.collector.count_frames(self.step) if self.collector else 0
        per_epoch = self.dataset.batches_per_epoch
        updates = self.learner.updates
        epoch = updates // per_epoch if per_epoch else 0
        self.seconds = time.monotonic() - self.started
        return Clock(self.step, frames, updates, epoch, self.seconds)

    def save(self, *, is_best: bool) -> None:
        """Write a checkpoint of everything, unless a metric or a weight is not finite.

        An infinite gradient of a finite loss makes such a weight before any metric shows it.
        """
        if self.rank > 0:
            return
        self.learner.metrics.check()
        for name, parameter in self.alg.named_parameters():
            if not parameter.isfinite().all():
                raise UserError(
                    f"weight {name} became NaN or infinite by step {self.step}; "
                    "training stopped, no checkpoint holds it"
                )
        self.clock()
        weights = {"alg": self.alg.state_dict(), "processor": self.processor.state_dict()}
        if self.learner.average is not None:
            weights["average"] = self.learner.average.state_dict()
        dataset = self.dataset.save(self.data_folder)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            **self.score.state_dict(),
            "finished": self.finished,
            "learner": self.learner.state_dict(),
            "dataset": dataset,
            "collector": self.collector.state_dict() if self.collector else None,
            "pace": self.pace.state_dict() if self.pace else None,
            "random": random_state(),
        }
        self.logger.flush()  # first: a resumed run needs all rows before its checkpoint
        checkpoint, files = Checkpoint(weights, state), dataset.get("files", [])
        self.checkpoints.save(self.run.folder, self.step, checkpoint, is_best=is_best, files=files)
        self.logger.cover()
        self.run.status.update(step=self.step, score=self.score.best_score)
        self.phases.lap("checkpoint")

    def resume(self) -> None:
        """Resume from the run directory's last checkpoint, or the one before if it is damaged."""
        folder = load_newest(self.run.folder, self.load)
        if self.step > self.total_steps:
            length = f"trainer.total_steps={self.total_steps}"
            if self.total_epochs is not None:
                length = f"trainer.total_epochs={self.total_epochs} ({self.total_steps} steps)"
            raise UserError(f"{length} is below the {self.step} steps of {folder}")
        if self.rank == 0:  # the status may be older than the checkpoint
            self.run.status.update(step=self.step, score=self.score.best_score)
        log.info("resumed at step %d of %d", self.step, self.total_steps)

    def load(self, checkpoint: Checkpoint) -> None:
        """Restore everything that ``save`` wrote."""
        weights, state = checkpoint
        self.alg.load_state_dict(weights["alg"])
        if self.learner.average is not None:
            self.learner.average.load_state_dict(weights.get("average", weights["alg"]))
        self.processor.load_state_dict(weights["processor"])
        if self.pace is not None:
            self.pace.load_state_dict(state["pace"])
            self.learner.total_updates = self.pace.count_updates(self.total_steps)
        self.learner.load_state_dict(state["learner"])
        self.dataset.load(state["dataset"], self.data_folder)
        if self.collector is not None:
            self.collector.load_state_dict(state["collector"])
        self.finished = state["finished"]
        self.step, self.seconds = state["step"], state["seconds"]
        self.score.load_state_dict(state)
        restore_random_state(state["random"])  # last, since environments may use the generators

    @property
    def data_folder(self) -> Path:
        """The folder of the dataset's files, which checkpoints share."""
        return self.run.folder / "checkpoints" / "data"

    def close(self) -> None:
        """Close the environments and the logger, and write a profile that was begun."""
        if self.profile is not None:
            self.profile.close(self.step, self.learner.updates)
        if isinstance(self.env, VectorEnv):
            self.env.close()
        self.evaluator.close()
        if self.rank == 0:
            self.logger.close()
