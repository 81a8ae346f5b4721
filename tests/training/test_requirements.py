"""Parts that go together are taken, whatever their spaces; others are refused."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import Space, spaces
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple

from research.config import build
from research.errors import UserError
from research.training.requirements import are_alike, check_parts
from tests.algs.test_contract import make as make_parts
from tests.conftest import Load


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (Box(-1, 1, (2,)), Box(-9, np.inf, (2,)), True),
        (Box(-1, 1, (2,)), Box(-1, 1, (3,)), False),
        (Box(0, 9, (2,)), Box(0, 9, (2,), np.uint8), False),
        (Discrete(3), Discrete(3), True),
        (Discrete(3), Discrete(4), False),
        (Discrete(3), Box(0, 3, (), np.int64), False),
        (Discrete(3), Discrete(3, start=1), False),
        (MultiDiscrete([2, 3]), MultiDiscrete([2, 3]), True),
        (MultiDiscrete([2, 3]), MultiDiscrete([3, 2]), False),
        (Dict(a=Box(0, 1, (2,)), b=Discrete(2)), Dict(a=Box(0, 9, (2,)), b=Discrete(2)), True),
        (Dict(a=Box(0, 1, (2,))), Dict(b=Box(0, 1, (2,))), False),
        (Dict(a=Box(0, 1, (2,))), Dict(a=Box(0, 1, (3,))), False),
        (Tuple([Discrete(2)]), Tuple([Discrete(2), Discrete(2)]), False),
    ],
)
def test_spaces_are_alike_whatever_their_bounds(one: Space, other: Space, alike: bool) -> None:
    assert are_alike(one, other) == alike


class Rooms(gymnasium.Env):
    """Observes which of four rooms it is in; an action above 0 leads to the next."""

    observation_space = spaces.Discrete(4)
    action_space = spaces.Box(-2, 2, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        self.room = 0
        return self.room, {}

    def step(self, action: np.ndarray) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.room = (self.room + int(action[0] > 0)) % 4
        return self.room, float(self.room), False, False, {}


def test_choices_are_observed_and_learned_from(load: Load) -> None:
    gymnasium.register("Rooms-v0", lambda **_: Rooms())
    cfg = load("alg=td3", "env=gymnasium", "env.id=Rooms-v0", "dataset.batch_size=8")
    cfg.dataset.capacity = 400
    parts = make_parts(cfg)
    assert parts.dataset.sample().obs.sum(1).tolist() == [1.0] * 8
    assert all(metrics["critic_loss"].isfinite() for metrics in parts.update(count=2))


def test_discrete_actions_are_what_an_algorithm_for_continuous_ones_refuses(load: Load) -> None:
    cfg = load("alg=td3", "env=gymnasium", "env.id=FrozenLake-v1", "dataset.capacity=400")
    with pytest.raises(UserError, match=r"network: actions must be continuous .*Discrete\(4\)"):
        make_parts(cfg)


def test_an_algorithm_of_rollouts_takes_no_other_dataset(load: Load) -> None:
    cfg = load("alg=ppo", "env=pendulum", "dataset=replay", "dataset.capacity=400")
    env, processor, alg, _, _ = make_parts(load("alg=ppo", "env=pendulum"))
    with pytest.raises(ValueError, match=r"PPO learns from whole rollouts, .*dataset=rollout"):
        check_parts(alg, processor, build(cfg.dataset, env, 0), env, collects=True)


def test_statistics_of_steps_need_steps(load: Load) -> None:
    cfg = load("alg=td3", "env=pendulum", "dataset.capacity=400", "dataset.batch_size=8")
    env, _, alg, dataset, _ = make_parts(cfg)
    node = load("processor=normalise", "processor.source=steps").processor
    processor = build(node, dataset.observation_space, dataset.action_space)
    check_parts(alg, processor, dataset, env, collects=True)
    with pytest.raises(ValueError, match=r"this run takes none; set source=batches"):
        check_parts(alg, processor, dataset, env, collects=False)
