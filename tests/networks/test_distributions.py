"""Densities, entropies and samples of actions, against torch.distributions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal

from research.networks.distributions import Categorical, Gaussian


def make_gaussian(batch: int, dim: int, *, per_row: bool, seed: int) -> tuple[Gaussian, Tensor]:
    """A distribution in float64, and actions of it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    log_std = draw(batch, dim) if per_row else draw(dim)
    return Gaussian(2 * draw(batch, dim), log_std), 3 * draw(batch, dim)


@given(st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(0, 999))
def test_gaussians_are_torchs(batch: int, dim: int, per_row: bool, seed: int) -> None:
    ours, action = make_gaussian(batch, dim, per_row=per_row, seed=seed)
    torchs = Independent(Normal(ours.mean, ours.log_std.exp()), 1)
    torch.testing.assert_close(ours.log_prob(action), torchs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), torchs.entropy())
    assert torch.equal(ours.center(), torchs.mean)


@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 999))
def test_categoricals_are_torchs(batch: int, num: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, num, generator=generator, dtype=torch.float64)
    action = torch.randint(num, (batch,), generator=generator)
    ours, torchs = Categorical(logits), TorchCategorical(logits=logits)
    torch.testing.assert_close(ours.log_prob(action), torchs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), torchs.entropy())
    assert torch.equal(ours.center(), torchs.mode)


def test_samples_have_the_moments_of_their_gaussian() -> None:
    mean = torch.tensor([[1.0, -3.0]]).expand(200_000, 2)
    sample = Gaussian(mean, torch.tensor([0.5, -1.0])).sample()
    torch.testing.assert_close(sample.mean(dim=0), mean[0], atol=0.02, rtol=0)
    expected = torch.tensor([0.5, -1.0]).exp()
    torch.testing.assert_close(sample.std(dim=0), expected, atol=0, rtol=0.02)


def test_classes_are_drawn_as_often_as_their_probability_says() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0], [5.0, 5.0, -50.0]]).repeat(100_000, 1)
    sample = Categorical(logits).sample().view(-1, 2)
    for column, row in enumerate(logits[:2]):
        share = sample[:, column].bincount(minlength=3) / len(sample)
        torch.testing.assert_close(share, row.softmax(dim=0), atol=0.01, rtol=0)


@pytest.mark.parametrize("far", [50.0, 1e4])
def test_a_nearly_certain_choice_has_finite_numbers(far: float) -> None:
    logits = torch.tensor([[far, 0.0]], requires_grad=True)
    distribution = Categorical(logits)
    numbers = distribution.log_prob(torch.tensor([1])) + distribution.entropy()
    numbers.sum().backward()
    assert logits.grad is not None
    assert torch.cat([numbers, logits.grad[0]]).isfinite().all()


def test_categories_are_drawn_as_torch_draws_them() -> None:
    distribution = Categorical(torch.randn(200, 5))
    torch.manual_seed(3)
    drawn = distribution.sample()
    torch.manual_seed(3)
    expected = torch.multinomial(distribution.logits.softmax(dim=-1), 1).squeeze(-1)
    assert torch.equal(drawn, expected)
