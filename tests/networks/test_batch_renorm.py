"""Batch renormalisation by the paper's formula, its statistics, and the networks around it."""

import pytest
import torch
from torch import Tensor, nn

from research.config import build
from research.networks.batch_renorm import BatchRenorm, BatchRenormActorCritic, BatchRenormMLP
from tests.conftest import Load, Spaces

EPSILON = 1e-3


def make_norm(
    dim: int = 4, num_members: int | None = None, *, momentum: float = 0.2, warmup: int = 0
) -> BatchRenorm:
    """A norm in float64 with random gains, offsets and statistics."""
    norm = BatchRenorm(dim, num_members, momentum=momentum, warmup=warmup).double()
    for values in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(values)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm


def make_network(
    spaces: Spaces, warmup: int = 0, log_std_bounds: tuple[float, float] = (-5, 2)
) -> BatchRenormActorCritic:
    return BatchRenormActorCritic(
        *spaces,
        actor_hidden_dims=[16],
        critic_hidden_dims=[8, 8],
        num_critics=3,
        activation=nn.ReLU,
        init=None,
        log_std_bounds=log_std_bounds,
        momentum=0.1,
        warmup=warmup,
    )


def statistics(module: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in module.buffers()]


def have_moved(module: nn.Module, before: list[Tensor]) -> bool:
    return not all(map(torch.equal, module.buffers(), before))


def test_in_its_warm_up_it_is_batch_normalisation() -> None:
    norm, x = make_norm(warmup=1), 3 * torch.randn(9, 4, dtype=torch.float64) + 1
    expected = nn.functional.batch_norm(
        x, None, None, norm.weight, norm.bias, training=True, eps=EPSILON
    )
    torch.testing.assert_close(norm(x, is_learning=True), expected)
    assert not torch.allclose(norm(x, is_learning=True), expected)  # the second is warm


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.1), (20.0, 0.0), (0.01, 0.0), (1.0, 50.0)])
def test_when_warm_it_corrects_by_bounded_ratio_and_shift(scale: float, offset: float) -> None:
    norm, x = make_norm(), scale * torch.randn(9, 4, dtype=torch.float64) + offset
    mean, std = norm.running_mean.clone(), (norm.running_var + EPSILON).sqrt()
    batch_mean, batch_var = x.mean(dim=0), x.var(dim=0, correction=0)
    r = ((batch_var + EPSILON).sqrt() / std).clamp(1 / 3, 3)
    d = ((batch_mean - mean) / std).clamp(-5, 5)
    # (x - mean) / std * r + d of the paper, but for where epsilon is added
    spread = (batch_var + r**2 * EPSILON).sqrt()
    expected = (x - batch_mean) / spread * r + d * batch_var.sqrt() / spread
    expected = expected * norm.weight + norm.bias
    torch.testing.assert_close(norm(x, is_learning=True), expected)


def test_within_the_bounds_it_normalises_by_the_running_statistics_but_for_epsilon() -> None:
    norm, x = make_norm(), 100 * torch.randn(64, 4, dtype=torch.float64)
    norm.running_mean.fill_(10.0)
    norm.running_var.fill_(8000.0)
    expected = norm(x)
    torch.testing.assert_close(norm(x, is_learning=True), expected, rtol=1e-5, atol=1e-5)


def test_no_gradient_flows_through_ratio_and_shift() -> None:
    norm = make_norm()
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    mean, std = norm.running_mean.clone(), (norm.running_var + EPSILON).sqrt()
    batch_mean, batch_var = x.mean(dim=0), x.var(dim=0, correction=0)
    r = ((batch_var + EPSILON).sqrt() / std).clamp(1 / 3, 3).detach()
    d = ((batch_mean - mean) / std).clamp(-5, 5).detach()
    spread = (batch_var + r**2 * EPSILON).sqrt()
    expected = (x - batch_mean) / spread * r + d * batch_var.sqrt() / spread
    weights = torch.randn(9, 4, dtype=torch.float64)
    (by_hand,) = torch.autograd.grad((weights * norm.weight * expected).sum(), [x])
    (gradient,) = torch.autograd.grad((weights * norm(x, is_learning=True)).sum(), [x])
    torch.testing.assert_close(gradient, by_hand)


def test_running_statistics_go_a_share_of_the_way_to_those_of_the_batch() -> None:
    norm, x = make_norm(momentum=0.2), torch.randn(9, 4, dtype=torch.float64) + 7
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    norm(x, is_learning=True)
    torch.testing.assert_close(norm.running_mean, 0.8 * mean + 0.2 * x.mean(dim=0))
    torch.testing.assert_close(norm.running_var, 0.8 * var + 0.2 * x.var(dim=0, correction=0))
    assert norm.num_batches_tracked.item() == 1


@pytest.mark.parametrize("mode", ["evaluation", "acting"])
def test_without_learning_the_running_statistics_normalise_and_stay(mode: str) -> None:
    norm, x = make_norm(), torch.randn(9, 4, dtype=torch.float64) + 7
    before = statistics(norm)
    result = norm.eval()(x, is_learning=True) if mode == "evaluation" else norm(x)
    expected = (x - norm.running_mean) / (norm.running_var + EPSILON).sqrt()
    torch.testing.assert_close(result, expected * norm.weight + norm.bias)
    torch.testing.assert_close(result[:1], norm(x[:1]))  # each example by itself
    assert not have_moved(norm, before)


@pytest.mark.parametrize("warmup", [0, 2])
def test_members_are_norms_of_their_own(warmup: int) -> None:
    norm, x = make_norm(4, 3, warmup=warmup), torch.randn(3, 9, 4, dtype=torch.float64)
    members = [make_norm(warmup=warmup) for _ in range(3)]
    for index, member in enumerate(members):
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(member, name).data.copy_(getattr(norm, name).view(3, 4)[index])
    expected = torch.stack([member(x[i], is_learning=True) for i, member in enumerate(members)])
    torch.testing.assert_close(norm(x, is_learning=True), expected)
    for name in ("running_mean", "running_var"):
        alone = torch.stack([getattr(member, name) for member in members])
        torch.testing.assert_close(getattr(norm, name).view(3, 4), alone)


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_unit_that_is_0_throughout_the_batch_has_a_finite_gradient(warmup: int) -> None:
    norm, x = make_norm(warmup=warmup), torch.randn(9, 4, dtype=torch.float64)
    x[:, 1] = 0
    x.requires_grad_()
    norm(x, is_learning=True).square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_a_single_example_has_no_statistics_to_learn_from() -> None:
    norm = make_norm()
    with pytest.raises(ValueError, match="needs more than one example"):
        norm(torch.zeros(1, 4, dtype=torch.float64), is_learning=True)


def test_half_precision_is_normalised_in_that_of_the_statistics() -> None:
    norm = BatchRenorm(4, None, momentum=0.1, warmup=0)
    assert norm(torch.randn(9, 4, dtype=torch.bfloat16), is_learning=True).dtype == torch.float32
    assert norm.running_mean.dtype == torch.float32


def test_every_linear_layer_has_a_norm_before_it_and_none_after() -> None:
    settings = {"activation": nn.ReLU, "init": None, "momentum": 0.1, "warmup": 0}
    mlp = BatchRenormMLP(5, 2, None, hidden_dims=[8, 6], **settings)
    kinds = [type(layer) for layer in mlp.layers]
    between = [BatchRenorm, nn.Linear, nn.ReLU]
    assert kinds == [*between, *between, BatchRenorm, nn.Linear]
    widths = [len(layer.weight) for layer in mlp.layers if isinstance(layer, BatchRenorm)]
    assert widths == [5, 8, 6]


def test_critics_rate_pairs_and_learn_only_when_told(spaces: Spaces) -> None:
    critics, obs, action = make_network(spaces).critics, torch.randn(5, 3), torch.rand(5, 2)
    before = statistics(critics)
    values = critics(obs, action)
    assert values.shape == (3, 5)
    assert len(values.flatten().unique()) == 15
    assert not have_moved(critics, before)
    torch.testing.assert_close(values[:, 2:3], critics(obs[2:3], action[2:3]))
    assert critics(obs, action, is_learning=True).shape == (3, 5)
    assert have_moved(critics, before)


def test_the_actor_learns_only_when_told(spaces: Spaces) -> None:
    actor, obs = make_network(spaces).actor, torch.randn(5, 3)
    before = statistics(actor)
    assert actor(obs).mean.shape == (5, 2)
    assert not have_moved(actor, before)
    log_std = actor(1e6 * obs, is_learning=True).log_std
    assert ((log_std >= -5) & (log_std <= 2)).all()
    assert have_moved(actor, before)


def test_the_config_is_that_of_the_authors(load: Load, spaces: Spaces) -> None:
    network = build(load("alg=crossq").network, *spaces)
    widths = {layer.shape for layer in network.critics.modules() if isinstance(layer, BatchRenorm)}
    assert widths == {(2, 1, 5), (2, 1, 2048)}
    norms = [layer for layer in network.modules() if isinstance(layer, BatchRenorm)]
    assert {(norm.eps, norm.share, norm.warmup) for norm in norms} == {(1e-3, 0.01, 100_000)}


def test_bounds_that_do_not_rise_are_refused(spaces: Spaces) -> None:
    with pytest.raises(ValueError, match="log_std_bounds must rise, got"):
        make_network(spaces, log_std_bounds=(2.0, -5.0))
