"""Classification: the loss in closed form, accuracies, mixup, and classes it must tell apart."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from research.algs.classification import Classification, mix
from research.batches import Example
from research.errors import UserError
from tests.algs.learning import make_learner
from tests.algs.test_supervised import SGD, VALUES, make_mlp, train
from tests.algs.test_td3 import START

OPTIONS: dict[str, Any] = {
    "optim": SGD,
    "label_smoothing": 0.0,
    "class_weights": None,
    "top_k": None,
    "mixup_alpha": 0.0,
}
OUTPUT = torch.tensor([[2.0, 0.0, -1.0, 0.5], [0.1, 0.2, 0.3, -0.4], [1.0, 3.0, 2.0, -1.0]])
TARGET = torch.tensor([0, 3, 2])
EXAMPLES = Example(torch.zeros(3, 3), TARGET)


def make(hidden_dims: tuple[int, ...] = (8,), **changes: Any) -> Classification:
    """Four classes; the same network every time."""
    torch.manual_seed(1)
    network = make_mlp(Discrete(4), hidden_dims=hidden_dims)
    return Classification(network, **(OPTIONS | changes))


def make_batch(size: int = 12) -> Example:
    return Example(torch.randn(size, 3), torch.randint(4, (size,)))


def log_prob(row: int, label: int) -> float:
    """The logarithm of the probability that the scores of a row give to a label."""
    scores = OUTPUT[row].tolist()
    return scores[label] - math.log(sum(math.exp(score) for score in scores))


def test_the_loss_is_the_mean_surprise_at_the_labels() -> None:
    expected = -(log_prob(0, 0) + log_prob(1, 3) + log_prob(2, 2)) / 3
    assert make().compute_loss(OUTPUT, EXAMPLES).item() == pytest.approx(expected)


def test_smoothing_spreads_a_share_of_every_label_over_all_classes() -> None:
    labels = zip(range(3), (0, 3, 2), strict=True)
    expected = [
        -sum((0.7 * (k == label) + 0.3 / 4) * log_prob(row, k) for k in range(4))
        for row, label in labels
    ]
    loss = make(label_smoothing=0.3).compute_loss(OUTPUT, EXAMPLES)
    assert loss.item() == pytest.approx(sum(expected) / 3)


def test_class_weights_are_factors_of_the_examples_losses() -> None:
    losses = [-log_prob(0, 0), -5 * log_prob(1, 3), -0.5 * log_prob(2, 2)]
    loss = make(class_weights=[1, 7, 0.5, 5]).compute_loss(OUTPUT, EXAMPLES)
    assert loss.item() == pytest.approx(sum(losses) / 3)


def test_validation_has_weights_and_neither_smoothing_nor_mixup() -> None:
    options = {"class_weights": [1.0, 2.0, 3.0, 4.0], "top_k": 2}
    plain, full = make(**options), make(**options, label_smoothing=0.3, mixup_alpha=1.0)
    batch = make_batch()
    for alg in (plain, full):
        alg.eval()
    torch.testing.assert_close(full.validate(batch), plain.validate(batch))
    for alg in (plain, full):
        alg.train()
    assert not torch.allclose(full.validate(batch)["loss"], plain.validate(batch)["loss"])


def test_accuracy_counts_labels_with_the_highest_score() -> None:
    metrics = make().compute_metrics(OUTPUT, EXAMPLES)
    assert set(metrics) == {"accuracy"}
    assert metrics["accuracy"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(("top_k", "expected"), [(2, 2 / 3), (3, 2 / 3), (4, 1.0)])
def test_top_k_accuracy_counts_labels_among_the_k_highest(top_k: int, expected: float) -> None:
    metrics = make(top_k=top_k).compute_metrics(OUTPUT, EXAMPLES)
    assert metrics[f"top{top_k}_accuracy"].item() == pytest.approx(expected)
    assert metrics["accuracy"].item() == pytest.approx(1 / 3)


def test_of_mixed_labels_accuracy_counts_the_share_of_the_highest_score() -> None:
    target = torch.tensor([[0.75, 0, 0.25, 0], [0, 0, 0.4, 0.6], [0.5, 0, 0.5, 0]])
    metrics = make(top_k=2).compute_metrics(OUTPUT, EXAMPLES._replace(target=target))
    assert metrics["accuracy"].item() == pytest.approx((0.75 + 0.4 + 0) / 3)
    assert metrics["top2_accuracy"].item() == pytest.approx((0.75 + 0.4 + 0.5) / 3)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2, "class_weights": [1, 2, 3, 4]}])
def test_the_loss_of_mixed_labels_is_the_mixture_of_their_losses(options: dict[str, Any]) -> None:
    alg, order = make(**options), torch.tensor([1, 2, 0])
    soft = mix(EXAMPLES._replace(target=alg.one_hot(TARGET)), order, torch.tensor(0.3))
    other = alg.compute_loss(OUTPUT, EXAMPLES._replace(target=TARGET[order]))
    expected = 0.3 * alg.compute_loss(OUTPUT, EXAMPLES) + 0.7 * other
    torch.testing.assert_close(alg.compute_loss(OUTPUT, soft), expected)


def find_mixture(batch: Example, mixed: Example) -> tuple[Tensor, Tensor]:
    """The order and share by which ``mixed`` was made, for more values than unknowns."""
    size = len(batch.target)
    for i in range(1, size):
        one, other = batch.obs[0], batch.obs[i]
        share = (mixed.obs[0] - other) / (one - other)
        if share.max() - share.min() < 1e-4:
            break
    else:
        raise AssertionError("the first example is no mixture of two")
    share = share.mean()
    rest = (mixed.obs - share * batch.obs) / (1 - share)
    return torch.cdist(rest, batch.obs).argmin(dim=1), share


def test_mixup_mixes_every_example_with_another_by_one_share() -> None:
    alg, batch = make(mixup_alpha=1.0), make_batch()
    torch.manual_seed(4)
    mixed = alg.augment(batch)
    order, share = find_mixture(batch, mixed)
    assert sorted(order.tolist()) == list(range(12))
    torch.testing.assert_close(mixed.obs, share * batch.obs + (1 - share) * batch.obs[order])
    labels = alg.one_hot(batch.target)
    torch.testing.assert_close(mixed.target, share * labels + (1 - share) * labels[order])
    torch.testing.assert_close(mixed.target.sum(dim=1), torch.ones(12))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixtures_have_the_moments_of_the_beta_distribution(
    alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "randperm", lambda size, device: torch.tensor([1, 0]))
    alg = make(mixup_alpha=alpha)
    batch = Example(torch.randn(2, 3), torch.tensor([0, 1]))
    shares = torch.stack([alg.augment(batch).target[0, 0] for _ in range(4000)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(0.25 / (2 * alpha + 1), rel=0.1)


def test_mixtures_follow_torchs_seed() -> None:
    draws = []
    for seed in (5, 5, 6):
        alg, batch = make(mixup_alpha=0.5), Example(torch.ones(4, 3), torch.arange(4))
        torch.manual_seed(seed)
        draws.append(alg.augment(batch).target)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_without_mixup_a_batch_stays_and_draws_nothing() -> None:
    alg, batch, before = make(), make_batch(), torch.get_rng_state()
    assert alg.augment(batch) is batch
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_parts", [2, 5])
def test_a_batch_in_parts_is_the_batch_as_a_whole(num_parts: int) -> None:
    options = {"class_weights": [1, 2, 3, 4], "label_smoothing": 0.1, "mixup_alpha": 1.0}
    whole, parts = make(top_k=2, **options), make(top_k=2, **options)
    batch, metrics = make_batch(), []
    for alg, accumulate in ((whole, 1), (parts, num_parts)):
        torch.manual_seed(3)
        metrics.append(make_learner(alg, accumulate=accumulate).learn(batch))
    torch.testing.assert_close(metrics[1], metrics[0])
    torch.testing.assert_close(dict(parts.state_dict()), dict(whole.state_dict()))


def test_it_acts_by_the_class_with_the_highest_score() -> None:
    alg, obs = make(), torch.randn(20, 3)
    action = alg.act(obs, START, explore=True)
    assert action.dtype == torch.int64
    assert action.tolist() == [row.index(max(row)) for row in alg.network(obs).tolist()]


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({}, {}),
        ({"label_smoothing": 0.1, "mixup_alpha": 0.2}, {}),
        ({}, {"precision": "bf16", "accumulate": 3}),
    ],
)
def test_it_tells_the_quadrants_of_a_plane_apart(
    options: dict[str, Any], settings: dict[str, Any]
) -> None:
    alg = make((32,), optim=partial(torch.optim.AdamW, lr=0.02, fused=True), **options)
    torch.manual_seed(2)
    obs = torch.randn(600, 3)
    batch = Example(obs, (obs[:, 0] > 0) + 2 * (obs[:, 1] > 0))
    learner = make_learner(alg, **settings)
    train(learner, [Example(*(part[i * 50 :][:50] for part in batch)) for i in range(10)] * 12)
    alg.eval()
    assert alg.validate(Example(*(part[500:] for part in batch)))["accuracy"] >= 0.93


def test_weights_of_classes_are_no_part_of_a_checkpoint() -> None:
    weighted = make(class_weights=[1, 2, 3, 4])
    assert set(weighted.state_dict()) == set(make().state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_weights": [1, 2, 3]}, r"or 4 numbers of at least 0, not all 0, got \[1, 2, 3\]"),
        ({"class_weights": [1, 2, 3, -1]}, "class_weights must be null or 4 numbers"),
        ({"class_weights": [0, 0, 0, 0]}, "class_weights must be null or 4 numbers"),
        ({"top_k": 1}, r"top_k must be null or in \[2, 4\], got 1"),
        ({"top_k": 5}, r"top_k must be null or in \[2, 4\], got 5"),
    ],
)
def test_numbers_outside_their_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_network_for_values_is_refused() -> None:
    with pytest.raises(ValueError, match="Classification learns targets in a Discrete, got Box"):
        Classification(make_mlp(VALUES), **OPTIONS)


def test_a_network_with_scores_of_more_classes_is_refused() -> None:
    alg = make()
    alg.network.register_forward_hook(lambda *call: torch.cat([call[-1], call[-1]], dim=1))
    with pytest.raises(
        UserError, match=r"returns \(12, 8\) for a batch, but the loss needs \(12, 4\)"
    ):
        make_learner(alg).learn(make_batch())
