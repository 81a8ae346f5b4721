"""``experiment=td3_parallel`` on environments that are stepped as one tensor, at a small size."""

from pathlib import Path

import gymnasium
import numpy as np

from tests.commands import train
from tests.envs.batched_pendulum import BatchedPendulum
from tests.training.toys import rows

SMALL = (
    *("experiment=td3_parallel", "env=native", "env.num_envs=128", "network.hidden_dims=[64,64]"),
    "env.id=tests.envs.batched_pendulum:BatchedPendulum-v0",
    *("dataset.capacity=204800", "dataset.batch_size=256", "dataset.discount=0.99"),
    *("trainer.total_steps=51200", "trainer.pace.warmup_steps=2560", "alg.optim.lr=1e-3"),
    *("trainer.pace.steps_per_update=128", "trainer.pace.updates_per_step=8", "device=cpu"),
    *(
        "trainer.log_every=25600",
        "trainer.evaluation.every=51200",
        "trainer.checkpoints.every=null",
    ),
)


def test_a_hundred_pendulums_at_once_are_learned_to_be_held(tmp_path: Path) -> None:
    """Nothing reaches -1,000, the best -150; three seeds of 102,400 steps reached -109 to -167."""
    run = train(tmp_path / "run", *SMALL)
    run.join(300)
    assert run.exitcode == 0, (tmp_path / "run.txt").read_text()
    assert rows(tmp_path / "run" / "eval.csv")[-1]["return"] > -400


def test_the_pendulums_are_gymnasiums() -> None:
    rng, batch = np.random.default_rng(0), BatchedPendulum(3)
    batch.reset(seed=0)
    each = [gymnasium.make("Pendulum-v1").unwrapped for _ in range(3)]
    for env, state in zip(
        each, zip(batch.angle.tolist(), batch.speed.tolist(), strict=True), strict=True
    ):
        env.reset()
        env.state = np.array(state)  # type: ignore[attr-defined]
    for _ in range(50):
        action = rng.uniform(-2, 2, (3, 1)).astype(np.float32)
        obs, reward, *_ = batch.step(action)
        found = [env.step(own) for env, own in zip(each, action, strict=True)]
        np.testing.assert_allclose(obs, np.array([step[0] for step in found]), atol=1e-3)
        np.testing.assert_allclose(reward, np.array([step[1] for step in found]), atol=1e-3)
