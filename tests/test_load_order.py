"""What crashes where libraries are loaded in another order: real programs with the real build."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from research.envs.rendering import try_library

ROOT = Path(__file__).parent.parent
SMALL = (
    *("env=cartpole", "env.action_repeat=50", "env.pixel_size=24", "network.hidden_dims=[16]"),
    *("dataset.capacity=100", "dataset.batch_size=4"),
    *(
        "trainer.pace.warmup_steps=20",
        "trainer.total_steps=24",
        "trainer.evaluation.episodes=1",
    ),
)


@pytest.mark.parametrize(
    ("library", "subprocesses"), [("egl", False), ("egl", True), ("osmesa", False)]
)
def test_learning_from_pixels_survives_a_renderer_that_brings_its_own_llvm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, subprocesses: bool
) -> None:
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)  # set by who rendered here before
    try_library.cache_clear()
    if (failure := try_library(library)) is not None:
        pytest.skip(f"{library} does not work here: {failure}")
    done = subprocess.run(
        [
            *(sys.executable, "train.py", "alg=drqv2", *SMALL),
            *(f"env.subprocesses={subprocesses}", f"hydra.run.dir={tmp_path}"),
        ],
        env={**os.environ, "MUJOCO_GL": library},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "critic_loss" in done.stdout


def test_a_library_for_environments_loads_no_compiler_where_torch_is_not() -> None:
    program = "import sys; from research.load_order import load_triton; load_triton(); "
    program += "raise SystemExit('triton' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
