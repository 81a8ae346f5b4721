"""The processor that does nothing."""

import torch

from research.batches import Transition
from research.processors.base import Identity
from tests.conftest import Spaces


def test_identity_leaves_everything_as_it_is(spaces: Spaces) -> None:
    identity = Identity(*spaces)
    obs, action, number = torch.randn(4, 3), torch.randn(4, 2), torch.randn(4)
    batch = Transition(obs, action, number, number, obs)
    assert (identity.observation_space, identity.action_space) == spaces
    assert identity(batch) is batch
    assert identity.process_obs(obs) is obs
    assert identity.unprocess_action(action) is action
    assert not identity.state_dict()
