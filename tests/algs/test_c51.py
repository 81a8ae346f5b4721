"""C51: the projection against loops by hand, the loss, its priorities."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from research.algs.c51 import C51
from tests.algs.test_q_learning import make as make_any
from tests.algs.test_q_learning import make_batch

V_MIN, V_MAX, M = -2.0, 2.0, 5


def make(**changes: Any) -> C51:
    alg = make_any("c51", **changes)
    assert isinstance(alg, C51)
    return alg


def project(probabilities: Tensor, reward: float, discount: float) -> list[float]:
    """Algorithm 1 of the paper, atom by atom."""
    spacing = (V_MAX - V_MIN) / (M - 1)
    masses = [0.0] * M
    for atom, probability in enumerate(probabilities.tolist()):
        moved = min(max(reward + discount * (V_MIN + atom * spacing), V_MIN), V_MAX)
        place = (moved - V_MIN) / spacing
        low, high = math.floor(place), math.ceil(place)
        if low == high:
            masses[low] += probability
        else:
            masses[low] += probability * (high - place)
            masses[high] += probability * (place - low)
    return masses


@given(
    st.lists(
        st.tuples(
            st.sampled_from([-1.0, 0.0, 0.5, 1.0]) | st.floats(-9, 9),
            st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_the_target_is_projected_as_by_hand(steps: list[tuple[float, float]]) -> None:
    torch.manual_seed(0)
    alg = make().double()
    reward, discount = torch.tensor(steps, dtype=torch.float64).T
    batch = make_batch(len(steps))
    batch = batch._replace(
        reward=reward, discount=discount, obs=batch.obs.double(), next_obs=batch.next_obs.double()
    )
    target = alg.compute_target(batch, None)
    probabilities = alg.next_output(batch, None).softmax(1)
    expected = [project(p, *step) for p, step in zip(probabilities, steps, strict=True)]
    torch.testing.assert_close(target, torch.tensor(expected).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(target.sum(1), torch.ones(len(steps)).double())


def test_atoms_that_are_not_exact_in_binary_lose_no_probability() -> None:
    alg = make(v_min=-0.1, v_max=0.7).double()
    batch = make_batch()._replace(reward=torch.zeros(12), discount=torch.ones(12))
    batch = batch._replace(obs=batch.obs.double(), next_obs=batch.next_obs.double())
    torch.testing.assert_close(alg.compute_target(batch, None).sum(1), torch.ones(12).double())


def test_values_are_means_over_the_atoms() -> None:
    logits = torch.randn(3, 4, M)
    support = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    expected = (logits.exp() * support).sum(2) / logits.exp().sum(2)
    torch.testing.assert_close(make().values(logits), expected)


def test_the_loss_is_the_cross_entropy_with_the_target() -> None:
    alg, batch = make(), make_batch()
    loss, target = alg.loss(batch, None), alg.compute_target(batch, None)
    taken = torch.stack([alg.network(batch.obs)[row, row % 3] for row in range(12)])
    expected = torch.nn.functional.cross_entropy(taken, target)
    torch.testing.assert_close(loss.value, expected)
    torch.testing.assert_close(loss.metrics["q"], alg.values(taken).mean())
    support = torch.linspace(V_MIN, V_MAX, M)
    torch.testing.assert_close(loss.metrics["target_q"], (target @ support).mean())


def test_priorities_are_divergences_from_the_target() -> None:
    alg, batch = make(), make_batch()
    target = alg.compute_target(batch, None)
    log_p = alg.taken_output(batch, None).log_softmax(1)
    expected = torch.nn.functional.kl_div(log_p, target, reduction="none").sum(1)
    torch.testing.assert_close(alg.loss(batch, None).priority, expected)


def test_no_gradient_flows_through_the_target() -> None:
    alg, batch = make(), make_batch()
    parameters = list(alg.network.parameters())
    target = alg.compute_target(batch, None)
    expected = -(target * alg.taken_output(batch, None).log_softmax(1)).sum() / 12
    gradients = [
        torch.autograd.grad(x, parameters) for x in (alg.loss(batch, None).value, expected)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("v_max", [-2.0, -3.0])
def test_a_support_without_width_is_refused(v_max: float) -> None:
    with pytest.raises(ValueError, match=rf"alg.v_max must be above alg.v_min=-2.0, got {v_max}"):
        make(v_max=v_max)
