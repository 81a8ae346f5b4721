"""Learning rates: a warm-up, then a line, a cosine or steps; or a fall at every plateau."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from research.ranges import Decay, Fraction, NonNegativeInt, PositiveFloat


def make_linear(
    optim: Optimizer, total_updates: int, *, warmup_updates: NonNegativeInt, final_share: Fraction
) -> LambdaLR:
    """Rise linearly over the first updates, then fall linearly to the end of the run.

    Args:
        optim: the optimizer whose rate is scheduled.
        total_updates: of the run.
        warmup_updates: of the rise, at least 0 and below ``total_updates``.
        final_share: of the full rate at the end, in [0, 1].

    Raises:
        ValueError: for a rise that is not shorter than the run.

    """
    check_warmup(warmup_updates, total_updates)

    def fall(update: int) -> float:
        done = (update - warmup_updates) / (total_updates - warmup_updates)
        return final_share + (1 - final_share) * (1 - min(done, 1.0))

    return LambdaLR(optim, warmed_up(fall, warmup_updates))


def make_cosine(
    optim: Optimizer, total_updates: int, *, warmup_updates: NonNegativeInt, final_share: Fraction
) -> LambdaLR:
    """Rise linearly over the first updates, then fall by half a cosine to the end of the run.

    Loshchilov and Hutter, 2017, https://arxiv.org/abs/1608.03983, equation 5, without restarts.

    Args:
        optim: the optimizer whose rate is scheduled.
        total_updates: of the run.
        warmup_updates: of the rise, at least 0 and below ``total_updates``.
        final_share: of the full rate at the end, in [0, 1].

    Raises:
        ValueError: for a rise that is not shorter than the run.

    """
    check_warmup(warmup_updates, total_updates)

    def fall(update: int) -> float:
        done = (update - warmup_updates) / (total_updates - warmup_updates)
        return final_share + (1 - final_share) * (1 + math.cos(math.pi * min(done, 1.0))) / 2

    return LambdaLR(optim, warmed_up(fall, warmup_updates))


def make_steps(
    optim: Optimizer,
    total_updates: int,
    *,
    warmup_updates: NonNegativeInt,
    milestones: Sequence[Fraction],
    factor: PositiveFloat,
) -> LambdaLR:
    """Rise linearly over the first updates, then multiply at each milestone.

    Args:
        optim: the optimizer whose rate is scheduled.
        total_updates: of the run.
        warmup_updates: of the rise, at least 0 and below ``total_updates``.
        milestones: shares of the run, in [0, 1].
        factor: multiplies the rate at each milestone, above 0.

    Raises:
        ValueError: for a rise that is not shorter than the run.

    """
    check_warmup(warmup_updates, total_updates)

    def fall(update: int) -> float:
        return factor ** sum(update >= share * total_updates for share in milestones)

    return LambdaLR(optim, warmed_up(fall, warmup_updates))


def make_plateau(
    optim: Optimizer, *, mode: Literal["max", "min"], factor: Decay, patience: NonNegativeInt
) -> ReduceLROnPlateau:
    """Multiply the rate by ``factor`` after ``patience`` + 1 evaluations without a better one.

    Args:
        optim: the optimizer whose rate is scheduled.
        mode: whether a larger (``max``) or smaller (``min``) ``trainer.score.metric`` is better.
        factor: in (0, 1).
        patience: evaluations in a row, at least 0.

    """
    return ReduceLROnPlateau(optim, mode, factor=factor, patience=patience)


def warmed_up(fall: Callable[[int], float], warmup_updates: int) -> Callable[[int], float]:
    """``fall`` after a linear rise, as shares of the full rate; the first is 1 / warmup_updates."""
    return lambda update: (update + 1) / warmup_updates if update < warmup_updates else fall(update)


def check_warmup(warmup_updates: int, total_updates: int) -> None:
    """Raise a ValueError for a rise that is not shorter than the run."""
    if warmup_updates >= total_updates:
        raise ValueError(
            f"warmup_updates must be below the {total_updates} updates of the run, "
            f"got {warmup_updates}"
        )
