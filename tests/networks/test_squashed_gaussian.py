"""The squashed Gaussian against torch's own distributions, and the network around it."""

from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from research.networks.mlp import EnsembleLinear, Init
from research.networks.squashed_gaussian import SquashedGaussian, SquashedGaussianActorCritic
from tests.conftest import Spaces


def reference(mean: torch.Tensor, log_std: torch.Tensor) -> TransformedDistribution:
    """torch's distribution of the same actions."""
    normal = Independent(Normal(mean, log_std.exp()), 1)
    return TransformedDistribution(normal, [TanhTransform(cache_size=1)])


@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 4.0))
def test_densities_are_those_of_torchs_distribution(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean, noise = torch.randn(2, 16, 3, generator=generator, dtype=torch.float64)
    log_std = torch.rand(16, 3, generator=generator, dtype=torch.float64) * 7 - 5
    actions = SquashedGaussian(scale * mean, log_std)
    action, log_prob = actions.sample(noise)
    x = scale * mean + log_std.exp() * noise
    torch.testing.assert_close(action, x.tanh())
    assert torch.equal(actions.action(noise), action)
    distribution = reference(scale * mean, log_std)
    distribution.transforms[0]._cached_x_y = (x, action)  # atanh would round
    torch.testing.assert_close(log_prob, distribution.log_prob(action), rtol=1e-9, atol=1e-9)


def test_densities_stay_finite_where_tanh_is_one() -> None:
    distribution = SquashedGaussian(torch.tensor([[30.0, -30.0]]), torch.zeros(1, 2))
    action, log_prob = distribution.sample(torch.zeros(1, 2))
    assert action.tolist() == [[1.0, -1.0]]
    # log(1 - tanh(30)^2) is log(4) - 60
    expected = 2 * (-0.5 * np.log(2 * np.pi) + 60 - np.log(4))
    assert log_prob.item() == pytest.approx(expected, rel=1e-6)


def test_densities_integrate_to_one() -> None:
    mean, log_std = torch.tensor([[0.4]]), torch.tensor([[-0.3]])
    grid = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    noise = (grid - mean) / log_std.exp()
    action, log_prob = SquashedGaussian(mean.double().expand(len(grid), 1), log_std).sample(noise)
    assert torch.trapezoid(log_prob.exp(), action[:, 0]).item() == pytest.approx(1, abs=1e-6)


def test_gradients_reach_mean_and_std_through_actions_and_densities() -> None:
    mean = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    log_std = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(5, 2, dtype=torch.float64)

    def sample(mean: torch.Tensor, log_std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return SquashedGaussian(mean, log_std).sample(noise)

    assert torch.autograd.gradcheck(sample, (mean, log_std))


def make_network(
    spaces: Spaces,
    log_std_bounds: tuple[float, float] = (-5, 2),
    init: Init | None = None,
    output_init: Init | None = None,
) -> SquashedGaussianActorCritic:
    return SquashedGaussianActorCritic(
        *spaces,
        hidden_dims=[16],
        num_critics=3,
        activation=nn.ReLU,
        layer_norm=False,
        init=init,
        output_init=output_init,
        log_std_bounds=log_std_bounds,
    )


def test_the_log_std_stays_between_its_bounds_and_reaches_them(spaces: Spaces) -> None:
    actor = make_network(spaces).actor
    log_std = actor(1e6 * torch.randn(500, 3)).log_std
    assert log_std.amin() == -5
    assert log_std.amax() == 2
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.zero_()
    assert (actor(torch.randn(4, 3)).log_std == -1.5).all()


def test_the_critics_rate_observations_with_actions(spaces: Spaces) -> None:
    network = make_network(spaces)
    assert network.critics(torch.randn(5, 3), torch.rand(5, 2)).shape == (3, 5)
    assert network.actor(torch.randn(5, 3)).mean.shape == (5, 2)


def gains(network: SquashedGaussianActorCritic) -> list[float]:
    """Of the orthogonal matrices of the hidden and the output layer, of actor and critics."""
    layers = list(network.modules())
    matrices = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
    members = [layer.weight for layer in layers if isinstance(layer, EnsembleLinear)]
    return [gain(matrix) for matrix in [*matrices, *(each for w in members for each in w)]]


def gain(matrix: Tensor) -> float:
    """All singular values of a matrix, which are one."""
    values = torch.linalg.svdvals(matrix.detach())
    torch.testing.assert_close(values, values[:1].expand_as(values))
    return round(values[0].item(), 4)


def test_output_layers_may_have_an_initialisation_of_their_own(spaces: Spaces) -> None:
    double, half = (partial(nn.init.orthogonal_, gain=gain) for gain in (2.0, 0.5))
    assert set(gains(make_network(spaces, init=double))) == {2.0}
    own = gains(make_network(spaces, init=double, output_init=half))
    assert own == [2.0, 0.5, *3 * [2.0], *3 * [0.5]]


@pytest.mark.parametrize("bounds", [(2.0, -5.0), (0.0, 0.0)])
def test_bounds_that_do_not_rise_are_refused(spaces: Spaces, bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="log_std_bounds must rise, got"):
        make_network(spaces, bounds)


@pytest.mark.parametrize(
    "space", [gymnasium.spaces.Discrete(3), Box(-2, 2, (2,), np.float32)], ids=["discrete", "wide"]
)
def test_other_actions_are_refused(spaces: Spaces, space: gymnasium.Space) -> None:
    with pytest.raises(ValueError, match="actions must"):
        make_network((spaces[0], space))  # type: ignore[arg-type]
