"""Declared spaces answer what networks and datasets ask of an environment."""

from gymnasium import spaces

from research.envs.spaces import DeclaredSpaces


def test_declared_spaces_stand_for_an_environment() -> None:
    obs_space, action_space = spaces.Box(0, 1, (3,)), spaces.Discrete(2)
    env = DeclaredSpaces(observation_space=obs_space, action_space=action_space)
    assert env.single_observation_space is obs_space
    assert env.single_action_space is action_space
    assert (env.num_envs, env.metadata["action_repeat"]) == (0, 1)
    env.close()
