"""When a run that collects makes its updates."""

from typing import Any, Protocol

from research.ranges import NonNegativeInt, PositiveInt

LONGEST_WARMUP = 10_000
"""Steps of the warm-up that a run gets if its config names none, unless they are too many."""

WARMUP_SHARE = 20
"""Such a warm-up takes at most a twentieth of the run."""


class Pace(Protocol):
    """How many updates belong to how many environment steps.

    Attributes:
        learns_first: whether the updates of a step need not know where it leads, so that they are
            made while the environments step; if not, they come after it and before the next.
        warmup_steps: environment steps with uniformly random actions, before any update.

    """

    learns_first: bool
    warmup_steps: int

    def begin(self, total_steps: int, num_envs: int) -> None:
        """Fit the pace to the run, before anything else is asked."""
        ...

    def count_updates(self, step: int) -> int:
        """Updates that belong to the first ``step`` environment steps."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a run that is longer now must know of its beginning."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a ``state_dict``."""
        ...


class OffPolicy:
    """Updates in a fixed ratio to environment steps, from all that was collected.

    Args:
        warmup_steps: environment steps with uniformly random actions, before any update; None for
            10,000, or a twentieth of the run if that is less.
        updates_per_step: updates for every ``steps_per_update`` environment steps.
        steps_per_update: environment steps for every ``updates_per_step`` updates.

    """

    learns_first = True

    def __init__(
        self,
        *,
        warmup_steps: NonNegativeInt | None,
        updates_per_step: PositiveInt,
        steps_per_update: PositiveInt,
    ) -> None:
        self.is_fixed = warmup_steps is not None
        self.warmup_steps = warmup_steps or 0
        self.updates_per_step = updates_per_step
        self.steps_per_update = steps_per_update

    def begin(self, total_steps: int, num_envs: int) -> None:
        if not self.is_fixed:
            self.warmup_steps = min(LONGEST_WARMUP, total_steps // WARMUP_SHARE)
        if self.warmup_steps >= total_steps:
            raise ValueError(
                f"trainer.total_steps={total_steps} lies within the warm-up of "
                f"trainer.pace.warmup_steps={self.warmup_steps} steps, so that nothing would be "
                "learned; give the run more, or the warm-up fewer"
            )

    def count_updates(self, step: int) -> int:
        return max(0, step - self.warmup_steps) * self.updates_per_step // self.steps_per_update

    def state_dict(self) -> dict[str, Any]:
        return {"warmup_steps": self.warmup_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not self.is_fixed:
            self.warmup_steps = state["warmup_steps"]


class OnPolicy:
    """Rollouts, each collected by one policy and then learned from as a whole.

    Steps after the last whole rollout of a run are not learned from.

    Args:
        horizon: T, steps of every environment in a rollout.
        epochs: passes over a rollout.
        minibatches: updates per pass, each on an equal share of the rollout.

    """

    learns_first = False
    warmup_steps = 0

    def __init__(
        self, *, horizon: PositiveInt, epochs: PositiveInt, minibatches: PositiveInt
    ) -> None:
        self.horizon = horizon
        self.epochs = epochs
        self.minibatches = minibatches

    def begin(self, total_steps: int, num_envs: int) -> None:
        self.rollout_steps = self.horizon * num_envs
        if self.rollout_steps > total_steps:
            raise ValueError(
                f"trainer.total_steps={total_steps} is less than a rollout of "
                f"trainer.pace.horizon={self.horizon} steps in each of {num_envs} environments, so "
                f"that nothing would be learned; give the run at least {self.rollout_steps}, or "
                f"set trainer.pace.horizon={max(1, total_steps // (8 * num_envs))}"
            )

    def count_updates(self, step: int) -> int:
        return step // self.rollout_steps * self.epochs * self.minibatches

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
