"""From NumPy to NumPy, through processor and algorithm."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from research.processors.base import Processor
from research.training.policy import Policy
from tests.training.toys import ACTION_SPACE, OBS_SPACE, Toy


class Scale(Processor):
    """Doubles observations, and halves actions."""

    def process_obs(self, obs: Any) -> Any:
        return {key: 2 * value for key, value in obs.items()} if isinstance(obs, dict) else 2 * obs

    def unprocess_action(self, action: Tensor) -> Tensor:
        return action / 2


class Mirror(Toy):
    """Returns what it is given, and remembers it."""

    def act(self, obs: Any, step: Tensor, explore: bool) -> Tensor:
        self.seen = obs, step, explore
        obs = obs["state"] if isinstance(obs, dict) else obs
        return obs + 0 * self.actor.weight.sum()  # with a gradient, were it not for the policy


def test_the_algorithm_sees_processed_observations_and_the_environment_its_own_actions() -> None:
    alg = Mirror()
    policy = Policy(alg, Scale(OBS_SPACE, ACTION_SPACE))
    action = policy(np.array([[1.0, 2.0]], np.float32), step=7, explore=True)
    assert isinstance(action, np.ndarray)
    assert action.tolist() == [[1.0, 2.0]]
    assert alg.seen[0].tolist() == [[2.0, 4.0]]
    assert alg.seen[1:] == (7, True)


def test_every_part_of_a_dict_observation_arrives() -> None:
    alg = Mirror()
    policy = Policy(alg, Scale(OBS_SPACE, ACTION_SPACE))
    obs = {"state": np.ones((2, 1), np.float32), "goal": np.arange(2)[:, None]}
    action = policy(obs, step=0, explore=False)
    assert action.tolist() == [[1.0], [1.0]]
    assert alg.seen[0]["goal"].tolist() == [[0], [2]]
    assert not alg.seen[2]


def test_observations_go_where_the_weights_are() -> None:
    alg = Mirror().to("meta")
    policy = Policy(alg, Scale(OBS_SPACE, ACTION_SPACE))
    with torch.device("meta"), np.testing.assert_raises(NotImplementedError):
        policy(np.ones((1, 2), np.float32), step=0, explore=False)  # meta tensors hold no numbers
    assert alg.seen[0].device.type == "meta"
