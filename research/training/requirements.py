"""Checks that the parts of a run fit together, before it starts."""

from typing import Any

from gymnasium import Space
from gymnasium.spaces import Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import VectorEnv

from research.algs.base import Algorithm
from research.datasets.base import (
    Dataset,
    OnlineDataset,
    RolloutDataset,
    ShareableDataset,
    ValidationDataset,
    find_prioritised,
)
from research.parallel.process_group import rank_and_count
from research.parallel.sums import is_parallel
from research.processors.base import Processor


def check_parts(
    alg: Algorithm, processor: Processor, dataset: Dataset, env: Any, *, collects: bool
) -> None:
    """Refuse parts that do not go together.

    Args:
        alg: the algorithm, which learns from the dataset; its ``network`` may tell its spaces.
        processor: what lies between both.
        dataset: the dataset.
        env: the environments that evaluate the policy; if it is only spaces, the dataset does.
        collects: whether the environments fill the dataset.

    Raises:
        ValueError: there is nothing to collect from or to evaluate on, the dataset cannot be
            filled or lacks priorities to draw by, or environment, dataset and network have
            different spaces.

    """
    check_learning(alg, processor, dataset, collects=collects)
    network = getattr(alg, "network", None)
    for name in ("observation_space", "action_space"):
        space, given = getattr(network, name, None), getattr(processor, name)
        if isinstance(space, Space) and not are_alike(space, given):
            raise ValueError(f"the network was built for {space}, but gets {given}")
    if not isinstance(env, VectorEnv):
        if collects:
            raise ValueError(
                f"a collector needs an environment to step, got a {type(env).__name__}; "
                "try trainer=offline or trainer=supervised"
            )
        if not isinstance(dataset, ValidationDataset) or not dataset.num_validation:
            raise ValueError(
                "nothing to evaluate on: no environment, and no dataset.validation; give it a "
                "fraction of the examples, such as 0.2"
            )
        if type(alg).validate is Algorithm.validate:
            raise ValueError(f"{type(alg).__name__} is evaluated in environments alone")
    elif collects and not isinstance(dataset, OnlineDataset):
        raise ValueError(
            f"a collector fills a dataset with steps, which a {type(dataset).__name__} does not "
            "take; try dataset=replay, or trainer=offline or trainer=supervised"
        )
    elif not are_alike(env.single_observation_space, dataset.observation_space):
        raise ValueError(
            f"the environment evaluates with {env.single_observation_space}, but the dataset "
            f"has {dataset.observation_space}; for its validation examples, try env=dataset"
        )
    elif not are_alike(env.single_action_space, dataset.action_space):
        raise ValueError(
            f"the environment takes actions of {env.single_action_space}, but those that the "
            f"dataset teaches are of {dataset.action_space}; for its validation examples, try "
            "env=dataset"
        )


def check_learning(
    alg: Algorithm, processor: Processor, dataset: Dataset, *, collects: bool
) -> None:
    """Refuse a dataset that lacks what the algorithm learns from or the processor notes.

    Raises:
        ValueError: there are no rollouts, no priorities or no steps where they are needed.

    """
    learns_from_rollouts = type(alg).prepare is not Algorithm.prepare
    if learns_from_rollouts and not isinstance(dataset, RolloutDataset):
        raise ValueError(
            f"{type(alg).__name__} learns from whole rollouts, which a {type(dataset).__name__} "
            "does not give; try dataset=rollout and trainer/pace=on_policy"
        )
    needs_priorities = find_prioritised(dataset) is not None
    if needs_priorities and not any(each.prioritises for each in alg.objectives()):
        raise ValueError(
            f"{type(alg).__name__} gives no priorities, by which the dataset is to draw; try "
            "dataset=replay, or alg=dqn, c51 or qrdqn"
        )
    if processor.observes and (not collects or is_parallel()):
        raise ValueError(
            "the processor takes its statistics from the steps of environments, of which "
            f"{'only the first rank takes any' if collects else 'this run takes none'}; "
            "set source=batches"
        )


def are_alike(one: Space[Any], other: Space[Any]) -> bool:
    """Whether two spaces have the same kind of elements, whatever the bounds of floats."""
    if isinstance(one, (Discrete, MultiDiscrete, MultiBinary)):
        return one == other
    if isinstance(one, Dict) and isinstance(other, Dict):
        return one.keys() == other.keys() and all(are_alike(one[key], other[key]) for key in one)
    if isinstance(one, Tuple) and isinstance(other, Tuple):
        return len(one) == len(other) and all(map(are_alike, one, other))
    is_one_kind = isinstance(one, type(other)) or isinstance(other, type(one))
    return is_one_kind and (one.shape, one.dtype) == (other.shape, other.dtype)


def share_dataset(dataset: Dataset, devices: int) -> tuple[int, int]:
    """Let the dataset hand out this rank's share of every batch; returns rank and number of ranks.

    Raises:
        ValueError: it cannot be shared, or the number of ranks is not a multiple of ``devices``.

    """
    rank, num_ranks = rank_and_count()
    if num_ranks % devices:
        raise ValueError(
            f"devices is {devices}, but there are {num_ranks} processes; train.py starts as many "
            "as are needed"
        )
    if num_ranks > 1:
        if not isinstance(dataset, ShareableDataset):
            raise ValueError(
                f"devices={devices}: a {type(dataset).__name__} cannot be shared by several; "
                "set trainer.devices=1"
            )
        dataset.share(rank, num_ranks)
    return rank, num_ranks


def count_steps(dataset: Dataset, total_steps: int | None, total_epochs: int | None) -> int:
    """The number of steps of the training, from the one of the two lengths that is given.

    Raises:
        ValueError: both are given, or neither, or the dataset has no epochs to count.

    """
    if total_steps is not None and total_epochs is None:
        return total_steps
    if total_epochs is not None and total_steps is None:
        return total_epochs * epoch_steps(dataset, "total_epochs")
    raise ValueError(
        "one of total_steps and total_epochs must be a number and the other null, got "
        f"{total_steps} and {total_epochs}"
    )


def epoch_steps(dataset: Dataset, what: str) -> int:
    """Steps of an epoch of ``dataset``.

    Raises:
        ValueError: it has no epochs; ``what`` names the setting that needs them.

    """
    if dataset.batches_per_epoch is None:
        raise ValueError(
            f"{what} needs a dataset with epochs, but a {type(dataset).__name__} has none; "
            "give a number of steps"
        )
    return dataset.batches_per_epoch
