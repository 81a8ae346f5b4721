"""Updates beside those of Stable-Baselines3; benchmarks/numerics.py makes the table of 200."""

import pytest

PAIRS = ["make_td3", "make_sac", "make_dqn", "make_ppo", "make_bounded_ppo"]
CONTRIB = ["make_tqc", "make_crossq", "make_qrdqn"]


@pytest.mark.parametrize("make", [*PAIRS, *CONTRIB])
def test_updates_are_those_of_stable_baselines3(make: str) -> None:
    package = "sb3_contrib" if make in CONTRIB else "stable_baselines3"
    pytest.importorskip(package, reason="needs pip install -e '.[benchmarks]'")
    from benchmarks import numerics

    differences, moved = numerics.compare(getattr(numerics, make)(), points=[8])
    assert moved > 1e-3
    # where a gradient is about its epsilon, Adam magnifies what CrossQ's norms round otherwise
    assert differences[8] < (1e-9 if make == "make_crossq" else 1e-10)
