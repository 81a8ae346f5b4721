"""No environment, for supervised and offline learning."""

from typing import Any

import gymnasium


class DeclaredSpaces:
    """What a dataset needs to know of an environment, where there is none.

    Args:
        observation_space: None where the dataset itself knows.
        action_space: None where the dataset itself knows.

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
