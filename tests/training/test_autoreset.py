"""However environments begin their episodes, the same steps and episodes come of it."""

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from research.errors import UserError
from research.training.autoreset import Autoreset, merge_infos
from research.training.collector import Collector
from research.training.evaluation import evaluate
from research.training.seed import derive_seed
from tests.training.toys import Script, Tape, Toy, make_policy

LENGTHS = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=4)
MODES = list(AutoresetMode)
OWN_RESETS = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]


def collect(env: Script, num_calls: int) -> tuple[Collector, Tape, list[dict[str, float]]]:
    tape = Tape()
    collector = Collector(env, make_policy(Toy()), tape, 0, overlap=None)
    return collector, tape, take_steps(collector, 0, num_calls)


def take_steps(collector: Collector, first: int, stop: int) -> list[dict[str, float]]:
    finished = []
    collector.start()
    for call in range(first, stop):
        collector.begin_step(call * collector.env.num_envs, at_random=True)
        finished += collector.end_step()
    return finished


def told(lengths: list[list[int]], env: int, mode: AutoresetMode) -> list[tuple[int, int, int]]:
    """The first call, the call after the last, and the length of an environment's episodes."""
    episodes, call = [], 0
    for episode in range(60):
        length = lengths[env][episode % len(lengths[env])]
        episodes.append((call, call + length, length))
        call += length + (mode is AutoresetMode.NEXT_STEP)
    return episodes


def metrics(episode: int, length: int) -> dict[str, float]:
    """Those of one of ``Script``'s episodes."""
    total, last = 10.0 * episode * length + length * (length + 1) / 2, 10.0 * episode + length
    return {
        "return": total,
        "length": length,
        "bonus": total,
        "success": last,
        "distance": last,
    }


def list_items(episode: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(episode.items())


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(1, 40))
def test_the_dataset_gets_the_same_transitions_in_every_mode(
    lengths: list[list[int]], num_calls: int
) -> None:
    for mode in MODES:
        collector, tape, finished = collect(Script(lengths, mode), num_calls)
        expected, ended = [], []
        for env in range(len(lengths)):
            for episode, (first, stop, length) in enumerate(told(lengths, env, mode)):
                ended += [metrics(episode, length)] if stop <= num_calls else []
                for time in range(1, min(length, num_calls - first) + 1):
                    over, is_odd = time == length, length % 2 == 1
                    places = [env, episode, time - 1, 0], [env, episode, time, 0]
                    reward = 10 * episode + time
                    expected.append((*places, reward, over and not is_odd, over and is_odd))
        got = [
            (s.obs.tolist(), s.next_obs.tolist(), s.reward, s.terminated, s.truncated)
            for s in sorted(tape.steps, key=lambda step: step.env)
        ]
        assert got == expected
        assert sorted(map(list_items, finished)) == sorted(map(list_items, ended))
        assert collector.count_frames(num_calls * len(lengths)) == len(expected)


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(1, 9))
def test_evaluation_is_over_the_first_episodes_that_began_in_every_mode(
    lengths: list[list[int]], num_episodes: int
) -> None:
    for mode in MODES:
        begun = sorted(
            (first, env, episode, length)
            for env in range(len(lengths))
            for episode, (first, _, length) in enumerate(told(lengths, env, mode))
        )
        expected = [metrics(episode, length) for _, _, episode, length in begun[:num_episodes]]
        means = {name: np.mean([each[name] for each in expected]) for name in expected[0]}
        env, policy = Script(lengths, mode), make_policy(Toy())
        got = evaluate(policy, env, num_episodes=num_episodes, seed=3, step=8)
        std = np.std([each["return"] for each in expected])
        assert got == pytest.approx({**means, "return_std": std})
        seeds = [derive_seed(3, "evaluation", 8, index) for index in range(len(lengths))]
        assert env.seeds[0] == (seeds if mode is AutoresetMode.DISABLED else seeds[0])
        assert len(env.seeds) == 1 or mode is AutoresetMode.DISABLED


@pytest.mark.parametrize("mode", OWN_RESETS)
def test_a_resumed_run_truncates_the_open_episodes_and_begins_anew_with_another_seed(
    mode: AutoresetMode, caplog: pytest.LogCaptureFixture
) -> None:
    lengths = [[4], [9], [3]]
    collector, interrupted, _ = collect(Script(lengths, mode), 4)  # where an episode has just ended
    env, tape = Script(lengths, mode), Tape()
    tape.obs = dict(interrupted.obs)
    resumed = Collector(env, make_policy(Toy()), tape, 0, overlap=None)
    resumed.load_state_dict(collector.state_dict())
    assert tape.cut == (2 if mode is AutoresetMode.NEXT_STEP else 3)
    assert "3 of 3 environments could not be restored: they reset themselves" in caplog.text
    assert env.seeds[0] not in collector.env.seeds
    assert take_steps(resumed, 4, 10)
    assert [step.next_obs[1:3].tolist() for step in tape.steps[:3]] == [[0, 1]] * 3


def test_overlap_is_refused_where_no_process_of_its_own_could_mend_it() -> None:
    env = Script([[1]], AutoresetMode.NEXT_STEP)
    with pytest.raises(ValueError, match="step in this process; try overlap=null"):
        Collector(env, make_policy(Toy()), Tape(), 0, overlap=True)


def test_a_fault_names_the_seed_with_which_all_environments_began() -> None:
    collector, _, _ = collect(Script([[4], [2]], AutoresetMode.NEXT_STEP), 3)
    collector.env.observe = lambda: np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]], np.float32)
    seed = derive_seed(0, "episode", 0, 0)
    with pytest.raises(UserError, match=rf"environment 1 .* environments that began with .*{seed}"):
        take_steps(collector, 3, 4)


@pytest.mark.parametrize("mode", OWN_RESETS)
def test_a_fault_in_a_first_observation_is_found(mode: AutoresetMode) -> None:
    class Faulty(Script):
        def observe(self) -> np.ndarray:
            obs = super().observe()
            obs[self.episode > 0, 3] = np.where(self.time == 0, np.inf, 0)[self.episode > 0]
            return obs

    with pytest.raises(UserError, match=r"environment 0 gave observation\[3\] = inf"):
        collect(Faulty([[2], [2]], mode), 4)
    with pytest.raises(UserError, match=r"environment 0 gave observation\[3\] = inf"):
        evaluate(make_policy(Toy()), Faulty([[2]], mode), num_episodes=2, seed=0, step=0)


def test_the_infos_of_a_step_are_the_final_ones_where_an_episode_is_over() -> None:
    over, everywhere = np.array([True, False]), np.ones(2, np.bool_)
    others = {
        "a": np.array([7.0, 1.0]),
        "_a": everywhere,
        "begun": np.ones(2),
        "_begun": everywhere,
    }
    final = {"a": np.array([2.0, 0.0]), "_a": over, "last": np.array([3.0, 0.0]), "_last": over}
    merged = merge_infos(final, {**others, "final_info": final, "_final_info": over}, over)
    assert {name: values.tolist() for name, values in merged.items()} == {
        "a": [2.0, 1.0],
        "_a": [True, True],
        "begun": [1.0, 1.0],
        "_begun": [False, True],
        "last": [3.0, 0.0],
        "_last": [True, False],
    }


def test_a_reset_of_all_forgets_which_episodes_had_ended() -> None:
    env = Script([[1]], AutoresetMode.NEXT_STEP)
    autoreset, mask, action = Autoreset(env), np.ones(1, np.bool_), np.zeros((1, 1))
    for _ in range(2):
        autoreset.begin([0], mask)
        outcome = autoreset.read(action, env.step(action))
        assert outcome.over.all()
        assert outcome.began is None
