"""A rollout holds the steps that were taken, and each is learned from once an epoch."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from hypothesis import given
from hypothesis import strategies as st

from research.batches import Rollout, Step
from research.datasets.replay.rollout import RolloutBuffer
from research.errors import UserError

OBS = Dict(place=Box(-1, 1, (2,), np.float64), image=Box(0, 255, (1, 2, 2), np.uint8))


def make(num_envs: int = 2, *, horizon: int = 4, minibatches: int = 2, seed: int = 0) -> Any:
    env: Any = SimpleNamespace(
        single_observation_space=OBS,
        single_action_space=Discrete(5),
        num_envs=num_envs,
        metadata={},
    )
    buffer = RolloutBuffer(env, seed, horizon=horizon, minibatches=minibatches, discount=0.9)
    buffer.hold({"log_prob": ()}, {"cost": (3,)})
    return buffer


class Stream:
    """Random steps of environments, whose every number is told; ``taken`` is what to expect."""

    def __init__(self, buffer: RolloutBuffer, seed: int = 0, *, resets: bool = False) -> None:
        self.buffer = buffer
        self.rng = np.random.default_rng(seed)
        self.resets = resets
        self.over = np.ones(buffer.num_envs, np.bool_)
        self.obs, self.info = self.draw_obs(), self.draw_info()
        self.taken: list[dict[str, Any]] = []

    def draw_obs(self) -> dict[str, np.ndarray]:
        count = self.buffer.num_envs
        place = self.rng.random((count, 2)).astype(np.float32)
        return {"place": place, "image": self.rng.integers(0, 255, (count, 1, 2, 2), np.uint8)}

    def draw_info(self) -> dict[str, np.ndarray]:
        return {"cost": self.rng.random((self.buffer.num_envs, 3)).astype(np.float32)}

    def start(self, mask: np.ndarray) -> None:
        obs, info = self.draw_obs(), self.draw_info()
        self.buffer.start_episodes(obs, mask, info)
        for old, new in ((self.obs, obs), (self.info, info)):
            for key in old:
                old[key] = old[key].copy()
                old[key][mask] = new[key][mask]

    def step(self) -> None:
        count = self.buffer.num_envs
        active = None
        if self.resets:
            active = ~self.over
        elif self.over.any():
            self.start(self.over)
        begun = self.over
        action, reward = self.rng.integers(0, 5, count), self.rng.random(count)
        ends = self.rng.integers(0, 5, count)
        terminated, truncated = ends == 0, ends == 1
        if active is not None:
            terminated, truncated = terminated & active, truncated & active
        next_obs, next_info = self.draw_obs(), self.draw_info()
        log_prob = {"log_prob": self.rng.random(count).astype(np.float32)}
        step = Step(action, reward, terminated, truncated, next_obs, log_prob, next_info, active)
        self.buffer.add(step)
        for env in range(count):
            self.taken.append(
                {
                    "is_step": active is None or bool(active[env]),
                    "obs": [self.obs["place"][env].tolist(), self.obs["image"][env].tolist()],
                    "action": int(action[env]),
                    "reward": float(np.float32(reward[env])),
                    "discount": float(np.float32(0.9 * (not terminated[env]))),
                    "next_obs": [next_obs["place"][env].tolist(), next_obs["image"][env].tolist()],
                    "over": bool(terminated[env] or truncated[env]),
                    "env": env,
                    "log_prob": float(log_prob["log_prob"][env]),
                    "cost": self.info["cost"][env].tolist(),
                    "next_cost": next_info["cost"][env].tolist(),
                }
            )
        self.obs, self.info, self.over = dict(next_obs), dict(next_info), terminated | truncated
        if self.resets and begun.any():
            self.start(begun)


def told(rows: Rollout) -> Iterator[dict[str, Any]]:
    """The rows of a rollout or of a minibatch, in the words of ``Stream``."""
    for row in range(len(rows.reward)):
        yield {
            "obs": [rows.obs["place"][row].tolist(), rows.obs["image"][row].tolist()],
            "action": int(rows.action[row]),
            "reward": float(rows.reward[row]),
            "discount": float(rows.discount[row]),
            "next_obs": [
                rows.next_obs["place"][row].tolist(),
                rows.next_obs["image"][row].tolist(),
            ],
            "over": bool(rows.over[row]),
            "env": int(rows.env[row]),
            "log_prob": float(rows.extras["log_prob"][row]),
            "cost": rows.info["cost"][row].tolist(),
            "next_cost": rows.next_info["cost"][row].tolist(),
        }


def expected(stream: Stream, horizon: int) -> list[dict[str, Any]]:
    """The rows of the last rollout."""
    return [dict(row) for row in stream.taken[-horizon * stream.buffer.num_envs :]]


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_a_rollout_is_exactly_the_steps_that_were_taken(
    num_envs: int, horizon: int, rollouts: int, resets: bool, seed: int
) -> None:
    buffer = make(num_envs, horizon=horizon, minibatches=1)
    stream = Stream(buffer, seed, resets=resets)
    for number in range(1, rollouts * horizon + 1):
        stream.step()
        if number % horizon:
            assert buffer.take_rollout() is None
            continue
        rollout = buffer.take_rollout()
        assert buffer.take_rollout() is None, "once is enough"
        rows = expected(stream, horizon)
        is_step = [row.pop("is_step") for row in rows]
        for row, (found, wanted) in enumerate(zip(told(rollout), rows, strict=True)):
            if is_step[row]:
                assert found == wanted
            else:
                assert found["over"], "nothing is passed on through a reset"
                assert found["reward"] == 0


@given(st.integers(1, 4), st.integers(2, 6), st.integers(1, 5), st.booleans(), st.integers(0, 99))
def test_an_epoch_shows_every_step_once_in_a_new_order(
    num_envs: int, horizon: int, minibatches: int, resets: bool, seed: int
) -> None:
    minibatches = min(minibatches, horizon * num_envs)
    buffer = make(num_envs, horizon=horizon, minibatches=minibatches, seed=seed)
    stream = Stream(buffer, seed, resets=resets)
    for _ in range(horizon):
        stream.step()
    buffer.learn_from(buffer.take_rollout())
    steps = [row["reward"] for row in stream.taken if row["is_step"]]
    for _ in range(2):
        sizes, seen = [], []
        for _ in range(minibatches):
            batch = buffer.sample()
            sizes.append(len(batch.reward))
            seen += batch.reward.tolist()
        assert sorted(seen) == sorted(steps)
        assert max(sizes) - min(sizes) <= 1


def test_ranks_share_every_minibatch() -> None:
    whole, *shares = (make(3, horizon=5, seed=1) for _ in range(4))
    for rank, buffer in enumerate(shares):
        buffer.share(rank, 3)
    for buffer in (whole, *shares):
        stream = Stream(buffer)
        for _ in range(5):
            stream.step()
        buffer.learn_from(buffer.take_rollout())
    for _ in range(4):
        parts = [buffer.sample().reward for buffer in shares]
        assert torch.equal(torch.cat(parts), whole.sample().reward)


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 6])
def test_a_loaded_rollout_goes_on_exactly(tmp_path: Path, steps: int) -> None:
    buffer, twin = make(seed=1), make(seed=2)
    stream = Stream(buffer)
    for number in range(1, steps + 1):
        stream.step()
        if number % 4 == 0:
            buffer.learn_from(buffer.take_rollout())
            for _ in range(6):
                buffer.sample()
    state = buffer.save(tmp_path)
    torch.save(state, tmp_path / "state.pt")
    twin.load(torch.load(tmp_path / "state.pt", weights_only=True), tmp_path)
    rng, over, obs, info = stream.rng.bit_generator.state, stream.over, stream.obs, stream.info
    found = []
    for each in (buffer, twin):
        stream.buffer, stream.over, stream.obs, stream.info = each, over, dict(obs), dict(info)
        stream.rng.bit_generator.state = rng
        while (rollout := each.take_rollout()) is None:
            stream.step()
        each.learn_from(rollout)
        found.append([list(told(rollout)), list(told(each.sample()))])
    assert found[0] == found[1]


def test_an_episode_that_is_lost_is_not_continued(tmp_path: Path) -> None:
    buffer = make(2, horizon=2, minibatches=1)
    stream = Stream(buffer, seed=3)
    stream.step()
    assert not stream.over.any()
    buffer.end_open_episodes(np.array([True, False]))
    buffer.start_episodes(stream.obs, np.array([True, False]), stream.info)
    stream.step()
    rollout = buffer.take_rollout()
    assert rollout.over.tolist()[:2] == [True, False]
    assert rollout.discount[0] == np.float32(0.9), "it was cut, not terminated"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reward": np.zeros(3)}, r"reward of shape \(3,\), but their spaces say \(2,\)"),
        ({"extras": {}}, r"bring extras \['log_prob'\], got \[\]"),
        ({"next_info": {"costs": np.zeros((2, 3))}}, r"next_info \['cost'\], got \['costs'\]"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    stream = Stream(make())
    no = np.zeros(2, np.bool_)
    extras = {"log_prob": np.zeros(2)}
    step = Step(np.zeros(2, int), np.zeros(2), no, no, stream.obs, extras, stream.info)
    with pytest.raises(UserError, match=words):
        stream.buffer.add(step._replace(**change))


def test_sizes_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has too few for 9 minibatches"):
        make(2, horizon=4, minibatches=9)
    with pytest.raises(UserError, match="the rollout is not complete"):
        make().sample()
    state = make(2).save(tmp_path)
    with pytest.raises(ValueError, match="saved with other sizes than 4 steps of 3 environments"):
        make(3).load(state, tmp_path)
