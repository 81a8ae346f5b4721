"""What an algorithm remembers, stores and is told stays with the episode that it is of."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from torch import Tensor

from research.algs.base import Acted, Algorithm
from research.batches import ExtendedTransition, list_tensors
from research.datasets.replay.buffer import ReplayBuffer
from research.envs.vector import vectorize
from research.errors import UserError
from research.training.collector import Collector
from research.training.evaluation import evaluate
from research.training.infos import Infos
from research.training.trainer import Trainer
from tests.training.test_trainer import make_online, off_policy
from tests.training.toys import Count, Script, Toy, make_policy, vector

AT_ONCE = off_policy(warmup_steps=0)
LENGTHS = [[3], [1, 5, 2], [4]]


class Memory(NamedTuple):
    """Steps since the memory began, and the sum of the infos since then."""

    steps: Tensor
    told: tuple[Tensor]


class Remembering(Toy):
    """Counts the steps of an episode, and adds up the info ``bonus`` that it is told."""

    extras: Mapping[str, tuple[int, ...]] = {"count": (), "told": (1,)}

    def initial_memory(self, num_envs: int) -> Memory:
        return Memory(torch.zeros(num_envs), (torch.zeros(num_envs, 1),))

    def act_with_memory(
        self, obs: Any, memory: Memory, info: Mapping[str, Tensor], step: Tensor, explore: bool
    ) -> Acted:
        told = memory.told[0] + info["bonus"][:, None] if info else memory.told[0]
        extras = {"count": memory.steps, "told": told}
        action = self.act(obs, step, explore)
        return Acted(action, Memory(memory.steps + 1, (told,)), extras)


def make_buffer(env: VectorEnv, *, n_step: int = 1, batch_size: int = 2000) -> ReplayBuffer:
    numbers: Any = {"capacity": 600, "batch_size": batch_size, "discount": 1.0}
    return ReplayBuffer(env, 0, **numbers, n_step=n_step, storage="ram", device="cpu")


def make(folder: Path, env: VectorEnv, *, n_step: int = 1, **options: Any) -> Trainer:
    buffer = make_buffer(env, n_step=n_step)
    torch.manual_seed(0)
    options = {"alg": Remembering(), "infos": {"bonus": []}, "pace": AT_ONCE, **options}
    return make_online(folder, env=env, dataset=buffer, eval_episodes=3, **options)


def assert_told(batch: ExtendedTransition) -> None:
    """Check all numbers of ``Count``'s transitions, whose bonus is the number of the step."""
    time, later = batch.obs[:, 2], batch.next_obs[:, 2]
    assert batch.extras["count"].equal(time)
    assert batch.extras["told"].equal((time * (time + 1) / 2)[:, None])
    assert batch.info["bonus"].equal(time), "0 where an episode begins: a reset tells none"
    assert batch.next_info["bonus"].equal(later)


@pytest.mark.parametrize("n_step", [1, 2])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_memory_values_and_infos_are_those_of_the_step(
    tmp_path: Path, num_envs: int, n_step: int
) -> None:
    trainer = make(tmp_path, vector(num_envs), n_step=n_step, total_steps=60)
    trainer.train()
    batch = trainer.dataset.sample()
    assert_told(batch)
    assert set(batch.obs[:, 2].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_memory_begins_with_an_episode_in_every_mode(mode: AutoresetMode) -> None:
    env = Script(LENGTHS, mode)
    buffer = make_buffer(env)
    buffer.hold(Remembering.extras, {"bonus": ()})
    policy, infos = make_policy(Remembering()), Infos({"bonus": ()})
    collector = Collector(env, policy, buffer, 0, infos, overlap=None)
    collector.start()
    for step in range(0, 90, 3):
        collector.begin_step(step, at_random=False)
        collector.end_step()
    batch = buffer.sample()
    assert batch.extras["count"].equal(batch.obs[:, 2])
    assert batch.next_info["bonus"].equal(batch.reward)
    within = batch.obs[:, 2] > 0
    assert batch.info["bonus"][within].equal(batch.reward[within] - 1)


class Spy(Remembering):
    """Notes what it is told while it does not explore."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[tuple[float, float, float]] = []

    def act_with_memory(
        self, obs: Any, memory: Memory, info: Mapping[str, Tensor], step: Tensor, explore: bool
    ) -> Acted:
        if not explore:
            self.notes += zip(
                obs[:, 2].tolist(), memory.steps.tolist(), info["bonus"].tolist(), strict=True
            )
        return super().act_with_memory(obs, memory, info, step, explore)


def test_evaluation_has_memory_and_infos_of_its_own(tmp_path: Path) -> None:
    trainer = make(tmp_path, vector(2), alg=Spy(), total_steps=60)
    trainer.train()
    assert isinstance(trainer.alg, Spy)
    assert {time for time, *_ in trainer.alg.notes} == {0, 1, 2, 3}
    assert all(time == steps == bonus for time, steps, bonus in trainer.alg.notes)
    assert_told(trainer.dataset.sample())


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_evaluations_memory_begins_with_an_episode_in_every_mode(mode: AutoresetMode) -> None:
    alg = Spy()
    infos = Infos({"bonus": ()})
    env = Script(LENGTHS, mode)
    evaluate(make_policy(alg), env, num_episodes=9, seed=0, step=0, infos=infos)
    steps = [steps for time, steps, _ in alg.notes if time < 5]
    resets = mode is AutoresetMode.NEXT_STEP  # there it also acts on the last observation
    assert all(time == steps or resets for time, steps, _ in alg.notes)
    assert steps.count(0) >= 9


class Repeatable(Count):
    """Its observations do not depend on the episodes before."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self.episodes = 0
        return super().reset(seed=seed, options=options)


def test_a_resumed_run_remembers(tmp_path: Path) -> None:
    def train(name: str, total_steps: int) -> Any:
        env = vectorize(
            partial(Repeatable, length=7),
            num_envs=3,
            subprocesses=False,
            action_repeat=1,
            flatten_obs=False,
        )
        trainer = make(tmp_path / name, env, total_steps=total_steps)
        trainer.train()
        return trainer.dataset.sample()

    whole = train("whole", 90)
    train("parts", 30)  # in the middle of three episodes
    parts = train("parts", 90)
    assert_told(parts)
    for one, other in zip(list_tensors(whole), list_tensors(parts), strict=True):
        assert one.equal(other)


def test_an_algorithm_without_any_of_it_gets_plain_batches(tmp_path: Path) -> None:
    trainer = make_online(tmp_path, total_steps=10)
    trainer.train()
    assert type(trainer.dataset.sample())._fields[-1] == "next_obs"


class Doors(gymnasium.Env):
    """Two of five actions are allowed at a time, others are an error; the mask says which."""

    observation_space = Box(-1, 9, (4,), np.float32)
    action_space = Discrete(5, start=2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe()

    def observe(self) -> tuple[np.ndarray, dict[str, Any]]:
        self.mask = np.zeros(5, np.int8)
        self.mask[self.np_random.choice(5, 2, replace=False)] = 1
        return np.full(4, self.steps, np.float32), {"action_mask": self.mask}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.mask[action - 2], "this action is not allowed"
        self.steps += 1
        obs, info = self.observe()
        return obs, 0.0, self.steps == 4, False, info


class FirstAllowed(Algorithm):
    """Takes the first action that is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def objectives(self) -> Any:
        return []

    def act_with_memory(
        self, obs: Any, memory: Any, info: Mapping[str, Tensor], step: Tensor, explore: bool
    ) -> Acted:
        assert memory is None
        return Acted(info["action_mask"].argmax(dim=1) + 2)


def test_masked_actions_are_taken_neither_by_the_policy_nor_at_random() -> None:
    env = SyncVectorEnv([Doors] * 2, autoreset_mode=AutoresetMode.DISABLED)
    buffer = make_buffer(env)
    buffer.hold({}, {"action_mask": (5,)})
    collector = Collector(
        env, make_policy(FirstAllowed()), buffer, 0, Infos({"action_mask": [5]}), overlap=None
    )
    collector.start()
    for step in range(0, 200, 2):
        collector.begin_step(step, at_random=step < 100)
        collector.end_step()
    batch = buffer.sample()
    allowed = batch.info["action_mask"].gather(1, batch.action[:, None] - 2)
    assert allowed.all(), "the mask is the one that the action was chosen by"
    assert batch.info["action_mask"].sum(1).eq(2).all()
    assert not batch.info["action_mask"].equal(batch.next_info["action_mask"])
    second = batch.info["action_mask"].flip(1).argmax(dim=1).neg() + 6
    assert (batch.action == second).any(), "a random one is not always the first"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pace": off_policy()}, r"stores \['count', 'told'\] with each .*; set .*warmup_steps=0"),
        (
            {"alg": Toy(), "infos": {"bonsu": []}},
            "no info 'bonsu' .*; it gave .*mean 'bonus'",
        ),
        ({"infos": {"bonus": [3]}}, r"info 'bonus' has shape \[\], not \[3\]"),
    ],
)
def test_what_cannot_be_stored_is_told_in_one_line(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises((UserError, ValueError), match=words):
        make(tmp_path, vector(), **{"total_steps": 20, **options}).train()


def test_a_dataset_that_stores_nothing_else_is_refused(tmp_path: Path) -> None:
    class Plain:
        batches_per_epoch: int | None = None
        observation_space, action_space = vector().single_observation_space, Box(-1, 1, (1,))

        def __len__(self) -> int:
            return 0

        def none(self, *_: Any) -> Any: ...

        start_episodes = add = end_open_episodes = sample = save = load = none

    with pytest.raises(ValueError, match=r"a Plain stores nothing besides .*\['count', 'told', 'b"):
        make_online(
            tmp_path,
            alg=Remembering(),
            dataset=Plain(),
            pace=AT_ONCE,
            infos={"bonus": []},
            total_steps=20,
        )
