"""Environments to be seen: ``env.id=tests.envs.spot:Spot-v0``, images and vectors."""

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

SIDE = 8


class Spot(gymnasium.Env):
    """A bright column in an image is what the action should point at; a vector mirrors it.

    | space | what |
    | --- | --- |
    | observation | a Dict of ``image``, uint8 (8, 8, 1), and ``sign``, 1 or -1 (1,); or the image |
    | action | (1,) in [-2, 2], or one of 4 |

    The reward is minus the squared distance between twice the column's place, in [-1, 1], and the
    action, or 1 for the right quarter of the image. An episode has 10 steps.
    """

    def __init__(self, *, shows: Literal["both", "image"] = "both", discrete: bool = False) -> None:
        image = spaces.Box(0, 255, (SIDE, SIDE, 1), np.uint8)
        sign = spaces.Box(-1, 1, (1,), np.float32)
        self.is_image = shows == "image"
        self.is_discrete = discrete
        self.observation_space = image if self.is_image else spaces.Dict(image=image, sign=sign)
        box = spaces.Box(-2, 2, (1,), np.float32)
        self.action_space = spaces.Discrete(4) if discrete else box

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.draw(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        place = self.sign * (2 * self.column / (SIDE - 1) - 1)
        reward = -float((action[0] - 2 * place) ** 2) if not self.is_discrete else 0.0
        if self.is_discrete:
            reward = float(action == self.column * 4 // SIDE)
        return self.draw(), reward, False, self.steps == 10, {}

    def draw(self) -> Any:
        self.column = int(self.np_random.integers(SIDE))
        self.sign = 1 if self.is_image or self.is_discrete else int(self.np_random.choice([-1, 1]))
        image = np.zeros((SIDE, SIDE, 1), np.uint8)
        image[:, self.column] = 255
        return (
            image if self.is_image else {"image": image, "sign": np.array([self.sign], np.float32)}
        )


gymnasium.register("Spot-v0", Spot)  # type: ignore[arg-type]
