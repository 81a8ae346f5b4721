"""EnvPool, if it is installed."""

import sys
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import VectorEnv

from research.envs.envpool import make_envpool
from research.errors import UserError


def make(id: str, *, num_envs: int = 2, **kwargs: Any) -> VectorEnv:
    return make_envpool(
        id=id, kwargs=kwargs, num_envs=num_envs, max_episode_steps=None, flatten_obs=True
    )


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(
        UserError, match=r"^env=envpool needs EnvPool: pip install -e '.\[envpool\]'"
    ):
        make("Pendulum-v1")


@pytest.mark.parametrize(
    ("id", "kwargs", "message"),
    [
        ("Pendulm-v1", {}, "EnvPool has no environment 'Pendulm-v1'; did you mean 'Pendulum-v1'"),
        ("Pendulum-v1", {"gg": 1}, "kwargs must suit 'Pendulum-v1': .*'gg'"),
    ],
)
def test_what_envpool_cannot_make_is_refused(id: str, kwargs: dict[str, Any], message: str) -> None:
    pytest.importorskip("envpool", reason="needs pip install -e '.[envpool]'")
    with pytest.raises(ValueError, match=message):
        make(id, **kwargs)


def test_infos_come_with_masks_and_a_call_after_an_end_only_resets() -> None:
    pytest.importorskip("envpool", reason="needs pip install -e '.[envpool]'")
    env = make("CartPole-v1", num_envs=3)
    env.reset(seed=0)
    ended = np.zeros(3, np.bool_)
    for _ in range(60):
        obs, reward, terminated, truncated, infos = env.step(np.ones(3, np.int64))
        assert not {"env_id", "elapsed_step"} & infos.keys()
        assert all(infos[f"_{name}"].all() for name in infos if not name.startswith("_"))
        assert (np.abs(obs[ended]) <= 0.05).all()
        assert not reward[ended].any()
        assert not (terminated | truncated)[ended].any()
        ended = terminated | truncated
    env.close()
