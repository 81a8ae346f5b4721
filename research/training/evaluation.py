"""Evaluation of a policy, in episodes without exploration or on examples held out."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from research.batches import count_rows, to_device
from research.errors import UserError
from research.parallel.process_group import sum_by_name
from research.ranges import PositiveInt
from research.training.autoreset import Autoreset
from research.training.episodes import Episodes, mean_metrics
from research.training.infos import NO_INFOS, Infos
from research.training.meter import check_metric
from research.training.observations import find_fault
from research.training.policy import Policy
from research.training.seed import derive_seed, preserve_random_state, seed_everything

LONG_EPISODE = 30_000
"""Steps after which an episode may be one that never ends; Atari's longest have 27,000."""

LOOK_EVERY = 1000
"""Steps between two checks for such an episode."""

Look: TypeAlias = Callable[[int, int], None]
"""Gets the number of an episode, and which environment shows its current state."""

log = logging.getLogger(__name__)
ALWAYS_EVALUATED = ("return", "length", "return_std")
"""Metrics of every evaluation in environments; all others come from their infos."""


class Evaluation:
    """When and on how much a run is evaluated.

    Args:
        every: steps between two evaluations; the last step has one, too. None for one per epoch.
        episodes: number per evaluation in environments, at least 1.
        batches: number of validation batches per evaluation, each time the next ones in turn; None
            for all.

    """

    def __init__(
        self, *, every: PositiveInt | None, episodes: PositiveInt, batches: PositiveInt | None
    ) -> None:
        self.every = every
        self.episodes = episodes
        self.batches = batches

    def batches_at(self, step: int, every: int) -> tuple[int, int | None]:
        """The first validation batch of the evaluation at ``step``, and how many it has.

        Args:
            step: of the run.
            every: steps between two evaluations.

        """
        due_before = (step - 1) // every
        return due_before * (self.batches or 0), self.batches


def evaluate(
    policy: Policy,
    env: VectorEnv[Any, Any, Any],
    *,
    num_episodes: int,
    seed: int,
    step: int,
    infos: Infos = NO_INFOS,
    interruptible: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, float]:
    """Means over ``num_episodes`` episodes, and ``return_std`` (population).

    See ``run_episodes``.
    """
    episodes = run_episodes(
        policy,
        env,
        num_episodes=num_episodes,
        seed=seed,
        step=step,
        infos=infos,
        interruptible=interruptible,
    )
    return summarise(episodes)


def summarise(episodes: list[dict[str, float]]) -> dict[str, float]:
    """The mean of every metric of these episodes, and ``return_std`` (population)."""
    returns = [episode["return"] for episode in episodes]
    return {**mean_metrics(episodes), "return_std": float(np.std(returns))}


def validate(
    policy: Policy,
    batches: Iterable[Any],
    *,
    seed: int,
    step: int,
    each: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Means of ``alg.validate`` over all examples, weighting each batch by its size.

    In a parallel run, the means are over the examples of all ranks.

    The numbers depend on the weights, the batches, ``seed`` and ``step`` alone. ``each`` is called
    before every batch, and may raise to interrupt the validation.
    """
    sums: dict[str, Tensor] = {}
    num_examples = 0
    with evaluation_mode(policy, seed=seed, step=step), torch.no_grad():
        for batch in batches:
            each()
            size = count_rows(batch)
            batch = policy.processor(to_device(batch, policy.device))
            with policy.autocast():
                metrics = policy.alg.validate(batch)
            for name, value in metrics.items():
                check_metric(f"eval/{name}", value)
                sums[name] = size * value.float() + sums.get(name, 0)
            num_examples += size
    own = {name: value.item() for name, value in sums.items()}
    totals = sum_by_name({"": float(num_examples), **own})
    return {name: total / totals[""] for name, total in totals.items() if name}


@contextmanager
def evaluation_mode(policy: Policy, *, seed: int, step: int) -> Iterator[None]:
    """Put the networks in evaluation mode and seed the generators; restore both at the end."""
    was_training = policy.alg.training, policy.processor.training
    policy.alg.eval()
    policy.processor.eval()
    try:
        with preserve_random_state():
            seed_everything(derive_seed(seed, "evaluation", step))
            yield
    finally:
        policy.alg.train(was_training[0])
        policy.processor.train(was_training[1])


def run_episodes(
    policy: Policy,
    env: VectorEnv[Any, Any, Any],
    *,
    num_episodes: int,
    seed: int,
    step: int,
    infos: Infos = NO_INFOS,
    interruptible: Callable[[], AbstractContextManager[None]] = nullcontext,
    look: Look | None = None,
) -> list[dict[str, float]]:
    """The metrics of ``num_episodes`` episodes, in the order in which the episodes began.

    The numbers depend on the weights, ``seed`` and ``step`` alone, and where environments reset
    themselves, on how many there are. An environment whose episode is over begins the next one, and
    the first episodes that began are returned, so short ones are not favoured.

    The environments step and reset in the context of ``interruptible``, which may raise to
    interrupt them. ``look`` is called at the begin of each episode and after each of its steps. A
    warning is logged once if an episode seems never to end.

    Raises:
        UserError: a reward or an observation is not finite.

    """
    with evaluation_mode(policy, seed=seed, step=step):
        return step_through(policy, env, num_episodes, seed, step, infos, interruptible, look)


def step_through(
    policy: Policy,
    env: VectorEnv[Any, Any, Any],
    num_episodes: int,
    seed: int,
    step: int,
    infos: Infos,
    interruptible: Callable[[], AbstractContextManager[None]],
    look: Look | None,
) -> list[dict[str, float]]:
    """``run_episodes`` in evaluation mode."""
    running, begun = list(range(env.num_envs)), env.num_envs
    seeds = [derive_seed(seed, "evaluation", step, index) for index in running]
    over, autoreset = np.ones(env.num_envs, dtype=np.bool_), Autoreset(env)
    episodes, finished = Episodes(env.num_envs), {}
    info: dict[str, np.ndarray] = {}
    obs, memory, num_steps, is_warned = None, None, 0, False
    while len(finished) < num_episodes:
        if num_steps == 0 or (autoreset.by_caller and over.any()):
            with interruptible():
                obs, start_infos = autoreset.begin(seeds, over)
            info = infos.begin(start_infos, over, info)
            memory = policy.begin_episodes(memory, over)
            require_finite(obs, None, step)
            look_at(np.flatnonzero(over), running, look)
        response = policy.respond(obs, memory, info, step=step, explore=False)
        action, memory = response.action, response.memory
        with interruptible():
            result = env.step(action)
        taken, step_infos, start_infos, over, obs, began = autoreset.read(action, result)
        info = infos.pick(step_infos, taken.active)
        require_finite(taken.next_obs, taken.reward, step)
        if began is not None:
            info = infos.begin(start_infos, began, info)
            memory = policy.begin_episodes(memory, began)
            require_finite(obs, None, step)
        episodes.add(taken.reward, step_infos, taken.active)
        num_steps += 1
        if num_steps % LOOK_EVERY == 0 and not is_warned:
            is_warned = warn_of_endless(episodes, step)
        if not autoreset.shows_next:
            look_at(range(env.num_envs), running, look)
        for index in np.flatnonzero(over).tolist():
            episode = episodes.finish(index)
            if running[index] < num_episodes:
                finished[running[index]] = episode
            running[index], begun = begun, begun + 1
            seeds[index] = derive_seed(seed, "evaluation", step, running[index])
        if autoreset.shows_next:
            look_at(range(env.num_envs), running, look)
    return [finished[index] for index in range(num_episodes)]


def look_at(indices: Iterable[int], running: list[int], look: Look | None) -> None:
    """Call ``look`` for these environments and their ``running`` episodes."""
    if look is not None:
        for index in indices:
            look(running[index], index)


def warn_of_endless(episodes: Episodes, step: int) -> bool:
    """Log a warning if a running episode may never end; returns whether there is one."""
    length = int(episodes.lengths.max())
    if length >= LONG_EPISODE:
        log.warning(
            "an episode of the evaluation at step %d is not over after %d steps; to truncate "
            "episodes, set env.max_episode_steps, to 1000 frames for example",
            *(step, length),
        )
    return length >= LONG_EPISODE


def require_finite(obs: Any, reward: np.ndarray | None, step: int) -> None:
    """Refuse observations and rewards that are not finite."""
    if fault := find_fault(obs, reward):
        raise UserError(
            f"environment {fault.index} gave {fault.what} in the evaluation at step {step}"
        )
