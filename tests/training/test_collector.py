"""What the environments did is what the dataset gets."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import VectorEnv
from torch import Tensor

from research.processors.base import Identity
from research.training.collector import Collector
from research.training.policy import Policy, Response
from research.training.seed import derive_seed
from tests.training.toys import ACTION_SPACE, OBS_SPACE, Step, Tape, Toy, make_policy, vector


def make_collector(env: VectorEnv, *, seed: int = 0) -> tuple[Collector, Tape]:
    tape = Tape()
    collector = Collector(env, make_policy(Toy()), tape, seed, overlap=None)
    collector.start()
    return collector, tape


def take_step(
    collector: Collector, step: int, *, at_random: bool = False
) -> list[dict[str, float]]:
    collector.begin_step(step, at_random=at_random)
    return collector.end_step()


def episodes(tape: Tape, env: int) -> Iterator[list[Step]]:
    """The finished episodes of one environment."""
    episode: list[Step] = []
    for step in tape.steps:
        if step.env == env:
            episode.append(step)
            if step.terminated or step.truncated:
                yield episode
                episode = []


@pytest.mark.parametrize("num_envs", [1, 3])
def test_every_transition_is_one_that_the_environment_made(num_envs: int) -> None:
    collector, tape = make_collector(vector(num_envs))
    for step in range(0, 40 * num_envs, num_envs):
        take_step(collector, step, at_random=step < 20 * num_envs)
    assert len(tape) == 40 * num_envs
    for step in tape.steps:
        seed, episode, time, _ = step.obs
        expected = [seed, episode, time + 1, np.float32(step.action)]
        assert step.next_obs.tolist() == expected
        assert step.reward == time + 1


@pytest.mark.parametrize("truncates", [False, True])
def test_the_end_of_an_episode_is_its_own_and_not_the_next_ones_beginning(truncates: bool) -> None:
    collector, tape = make_collector(vector(3, length=4, truncates=truncates))
    for step in range(0, 36, 3):
        take_step(collector, step)
    for step in tape.steps:
        is_last = step.next_obs[2] == 4
        assert (step.terminated, step.truncated) == (
            is_last and not truncates,
            is_last and truncates,
        )
        assert step.next_obs[:2].tolist() == step.obs[:2].tolist()


def test_every_episode_of_every_environment_starts_from_a_seed_of_its_own() -> None:
    collector, tape = make_collector(vector(3), seed=5)
    for step in range(0, 120, 3):
        take_step(collector, step)
    seen = set()
    for env in range(3):
        for count, episode in enumerate(episodes(tape, env)):
            seed = derive_seed(5, "episode", env, count)
            seen.add(seed)
            assert [step.obs[0] for step in episode] == [seed % 2**20] * len(episode)
            assert [step.obs[1] for step in episode] == [count + 1] * len(episode)
            assert [step.obs[2] for step in episode] == list(range(len(episode)))
            assert len(episode) == seed % 4 + 1
    assert len(seen) > 30


def test_finished_episodes_are_told_once_with_their_numbers() -> None:
    collector, tape = make_collector(vector(2))
    told = [episode for step in range(0, 60, 2) for episode in take_step(collector, step)]
    lengths = [len(episode) for env in range(2) for episode in episodes(tape, env)]
    assert sorted(episode["length"] for episode in told) == sorted(lengths)
    for episode in told:
        length = episode["length"]
        assert episode["return"] == episode["bonus"] == length * (length + 1) / 2


class Watching(Identity):
    """Notes what it observes."""

    observes = True

    def __init__(self) -> None:
        super().__init__(OBS_SPACE, ACTION_SPACE)
        self.seen: list[Tensor] = []

    def observe(self, obs: Any) -> None:
        self.seen.append(obs.clone())


def test_a_processor_observes_once_what_is_acted_on_in_every_step() -> None:
    processor, tape = Watching(), Tape()
    collector = Collector(vector(2), Policy(Toy(), processor), tape, 0, overlap=None)
    collector.start()
    for step in range(0, 40, 2):
        take_step(collector, step, at_random=step < 20)
    acted = [step.obs for step in sorted(tape.steps, key=lambda step: step.env)]
    seen = [obs[env].numpy() for env in range(2) for obs in processor.seen]
    np.testing.assert_array_equal(seen, acted)


def collect_actions(seed: int, num_steps: int) -> list[float]:
    collector, tape = make_collector(vector(), seed=seed)
    for step in range(num_steps):
        take_step(collector, step, at_random=True)
    return [step.action for step in tape.steps]


def test_warmup_actions_are_uniform() -> None:
    counts, _ = np.histogram(collect_actions(seed=0, num_steps=2000), bins=4, range=(-1, 1))
    assert counts.sum() == 2000
    assert np.abs(counts - 500).max() < 80  # four standard deviations


def test_warmup_actions_follow_the_run_seed() -> None:
    first = collect_actions(seed=0, num_steps=20)
    assert collect_actions(seed=0, num_steps=20) == first
    assert not set(collect_actions(seed=1, num_steps=20)) & set(first)


def test_the_policy_explores_unless_actions_are_asked_for_at_random() -> None:
    collector, tape = make_collector(vector(3))
    calls = []
    respond = collector.policy.respond

    def spy(*arguments: Any, step: int, explore: bool) -> Response:
        calls.append((step, explore))
        response = respond(*arguments, step=step, explore=explore)
        return response._replace(action=0 * response.action + 0.5)

    collector.policy.respond = spy  # type: ignore[method-assign]
    for step in range(0, 18, 3):
        take_step(collector, step, at_random=step < 9)
    assert calls == [(step, True) for step in range(9, 18, 3)]
    assert [step.action == 0.5 for step in tape.steps] == [False] * 9 + [True] * 9


def test_the_policy_sees_the_newest_observation_also_after_a_reset() -> None:
    collector, tape = make_collector(vector(2))
    seen = []
    respond = collector.policy.respond

    def spy(obs: np.ndarray, *arguments: Any, step: int, explore: bool) -> Response:
        seen.extend(obs.tolist())
        return respond(obs, *arguments, step=step, explore=explore)

    collector.policy.respond = spy  # type: ignore[method-assign]
    for step in range(0, 40, 2):
        take_step(collector, step)
    assert seen == [step.obs.tolist() for step in tape.steps]


def test_an_environment_that_does_not_say_how_it_resets_is_refused() -> None:
    env = vector()
    env.metadata = {}
    with pytest.raises(
        ValueError, match=r"an AutoresetMode in metadata\['autoreset_mode'\], got N"
    ):
        make_collector(env)


def test_a_resumed_collector_goes_on_with_new_episodes_and_new_actions() -> None:
    collector, tape = make_collector(vector(2, length=3))
    for step in range(0, 8, 2):
        take_step(collector, step, at_random=True)
    state = collector.state_dict()
    for step in range(8, 20, 2):
        take_step(collector, step, at_random=True)
    other, other_tape = make_collector(vector(2, length=3))
    other.load_state_dict(state)
    assert other_tape.cut == 2
    other.start()
    for step in range(8, 20, 2):
        take_step(other, step, at_random=True)
    assert [s.action for s in other_tape.steps] == [s.action for s in tape.steps[8:]]
    starts = [s.obs[0] for s in other_tape.steps if s.obs[2] == 0]
    # episodes 0 and 1 had begun, the second was cut
    assert starts == [
        derive_seed(0, "episode", env, count) % 2**20 for count in (2, 3) for env in (0, 1)
    ]
