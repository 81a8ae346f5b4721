"""A stand-in for the environment in supervised and offline learning, which have none."""

from typing import Any

import gymnasium


class DeclaredSpaces:
    """The attributes of an environment that a dataset reads, where there is no environment.

    Args:
        observation_space: None if the dataset defines it.
        action_space: None if the dataset defines it.

    """

    def __init__(
        self,
        *,
        observation_space: gymnasium.Space | None,
        action_space: gymnasium.Space | None,
    ) -> None:
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.num_envs = 0
        self.metadata: dict[str, Any] = {"action_repeat": 1}

    def close(self) -> None:
        """Do nothing; there is no environment."""
