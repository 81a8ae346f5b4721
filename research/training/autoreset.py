"""Steps and resets told apart, in each of the three modes of gymnasium's vector environments."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from research.batches import Step

FINAL = {"final_obs", "_final_obs", "final_info", "_final_info"}
"""The infos in which an environment that resets in the same step reports the episode's end."""


class Outcome(NamedTuple):
    """What a call of a vector environment's ``step`` did.

    Attributes:
        step: of the environments that were not reset by the call.
        infos: of this step.
        start_infos: where ``began``, those that came with the first observation.
        over: (E,) bool, whose episode ended.
        obs: (E, ...), to act on next.
        began: (E,) bool, for which of them ``obs`` begins an episode; None for none.

    """

    step: Step
    infos: Mapping[str, Any]
    start_infos: Mapping[str, Any]
    over: np.ndarray
    obs: Any
    began: np.ndarray | None


class Autoreset:
    """Reads the results of a vector environment, whichever way it begins episodes.

    Args:
        env: either leaves resets to its caller (``by_caller``), or resets itself in the step that
            ends an episode, with ``infos["final_obs"]`` (E, ...), or in the step after it.

    Attributes:
        shows_next: whether an environment is in the next episode after the step that ends one.

    Raises:
        ValueError: it does not say which.

    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        self.env: Any = env
        self.mode = env.metadata.get("autoreset_mode")
        if not isinstance(self.mode, AutoresetMode):
            raise ValueError(
                f"{env} must have an AutoresetMode in metadata['autoreset_mode'], got {self.mode}"
            )
        self.by_caller = self.mode is AutoresetMode.DISABLED
        self.shows_next = self.mode is AutoresetMode.SAME_STEP
        self.over = np.zeros(env.num_envs, dtype=np.bool_)

    def begin(self, seeds: Sequence[int | None], mask: np.ndarray) -> tuple[Any, Mapping[str, Any]]:
        """Begin episodes where ``mask`` (E,) is true; returns observations (E, ...) and infos.

        Environments that reset themselves all begin anew, and take the first of the seeds (E,).
        """
        self.over = np.zeros_like(mask)
        if self.by_caller:
            return self.env.reset(seed=seeds, options={"reset_mask": mask})
        return self.env.reset(seed=seeds[0])

    def read(self, action: np.ndarray, result: tuple[Any, ...]) -> Outcome:
        """What a call of ``step`` with ``action`` did, by its ``result``."""
        obs, reward, terminated, truncated, infos = result
        next_obs, active, began, start_infos = obs, None, None, infos
        ended, self.over = self.over, terminated | truncated
        if self.mode is AutoresetMode.NEXT_STEP and np.count_nonzero(ended):
            active, began = ~ended, ended
        elif self.mode is AutoresetMode.SAME_STEP and np.count_nonzero(self.over):
            began = self.over
            next_obs = merge(infos["final_obs"], obs, began)
            if "final_info" in infos:
                infos = merge_infos(infos["final_info"], infos, began)
        step = Step(action, reward, terminated, truncated, next_obs, active=active)
        return Outcome(step, infos, start_infos, self.over, obs, began)


def merge(new: Any, old: Any, mask: np.ndarray) -> Any:
    """Observations (E, ...), or a dict of such: ``new`` where ``mask`` (E,) is true."""
    if isinstance(new, dict):
        return {key: merge(new[key], old[key], mask) for key in new}
    return np.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def merge_infos(
    final: Mapping[str, Any], others: Mapping[str, Any], over: np.ndarray
) -> dict[str, Any]:
    """The infos of a step: the ``final`` ones where an episode is ``over`` (E,)."""
    merged = {**others, **final}
    for name, values in others.items():
        if name in FINAL:
            del merged[name]
        elif isinstance(final.get(name), np.ndarray):
            merged[name] = merge(final[name], values, over)
        elif name.startswith("_"):  # the mask of an info that no final step reports
            merged[name] = values & ~over
    return merged
