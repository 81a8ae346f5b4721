"""Beginning with another run's weights: what is taken over, what is refused, what is left alone."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
import torch
from torch import Tensor, nn

from research.algs.td3 import TD3
from research.errors import UserError
from research.networks.actor_critic import ActorCritic
from research.processors.base import Processor
from research.processors.normalise import NormaliseObservations
from research.processors.normalise_rewards import NormaliseRewards
from research.status import Status
from research.training.run import Run
from research.training.saving.initialise import initialise, select
from tests.conftest import Spaces

ACTOR_WEIGHT = "alg.network.actor.0.0.weight"


class Parts(NamedTuple):
    """What gets weights."""

    alg: TD3
    processor: Processor

    def weights(self) -> dict[str, dict[str, Any]]:
        """As a checkpoint holds them."""
        return {"alg": self.alg.state_dict(), "processor": self.processor.state_dict()}

    def state(self) -> dict[str, Tensor]:
        """A copy of all tensors, by their full names."""
        return {
            f"{root}.{name}": value.clone()
            for root, state in self.weights().items()
            for name, value in state.items()
        }


Make: TypeAlias = Callable[..., Parts]


@pytest.fixture
def make(spaces: Spaces) -> Make:
    """Makes TD3 and its processor, with random weights and statistics."""

    def make(hidden_dims: Sequence[int] = (8, 8), *, normalises: bool = True) -> Parts:
        network = ActorCritic(
            *spaces,
            hidden_dims=hidden_dims,
            num_critics=2,
            activation=nn.ReLU,
            layer_norm=True,
            init=nn.init.orthogonal_,  # biases are zeros everywhere
        )
        alg = TD3(
            network,
            optim=partial(torch.optim.Adam, lr=1e-3),
            tau=0.1,
            explore_noise=0.1,
            target_noise=0.2,
            noise_clip=0.5,
            actor_every=2,
        )
        if not normalises:
            return Parts(alg, Processor(*spaces))
        processor = NormaliseObservations(*spaces, clip=5.0, epsilon=1e-5, source="batches")
        processor.moments["obs"].update(torch.randn(9, 3))
        return Parts(alg, processor)

    return make


@pytest.fixture
def trained(make: Make) -> Parts:
    """The other run's: every tensor differs from a new run's, and targets from networks."""
    parts = make()
    for part in parts:
        for value in part.state_dict().values():
            value += torch.rand_like(value) + 1
    return parts


@pytest.fixture
def source(tmp_path: Path, trained: Parts) -> Path:
    """The other run's directory."""
    save(tmp_path / "source/checkpoints/last", trained.weights())
    return tmp_path / "source"


def save(folder: Path, weights: Any) -> None:
    folder.mkdir(parents=True)
    torch.save(weights, folder / "weights.pt")


def begin(
    folder: Path,
    into: Parts,
    source: Path | None,
    *,
    parts: Sequence[str] | None = None,
    strict: bool = True,
) -> None:
    run = Run(folder, Status(folder), 0, {})
    initialise(*into, run, source and str(source), parts=parts, strict=strict)


def changed(before: dict[str, Tensor], parts: Parts) -> set[str]:
    """Names of what is not as it was."""
    return {name for name, value in parts.state().items() if not value.equal(before[name])}


def assert_unchanged_by(refused: Callable[[], None], parts: Parts) -> str:
    """Check that a call is refused in one line and changes nothing; returns the line."""
    before = parts.state()
    with pytest.raises(UserError) as refusal:
        refused()
    assert not changed(before, parts)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_run_begins_with_all_weights_and_statistics_of_another(
    make: Make, trained: Parts, source: Path, tmp_path: Path
) -> None:
    parts = make()
    begin(tmp_path, parts, source)
    assert not changed(trained.state(), parts)


def test_the_best_checkpoint_is_taken_before_the_last_unless_one_is_named(
    make: Make, source: Path, tmp_path: Path
) -> None:
    best = make()
    save(source / "checkpoints/0000000007", best.weights())
    (source / "checkpoints/best").symlink_to("0000000007")
    for name, is_best in ((".", True), ("checkpoints/best", True), ("checkpoints/last", False)):
        parts = make()
        begin(tmp_path, parts, source / name)
        assert (not changed(best.state(), parts)) == is_best


def test_without_a_source_or_after_the_first_checkpoint_nothing_is_read(
    make: Make, tmp_path: Path
) -> None:
    parts = make()
    before = parts.state()
    begin(tmp_path, parts, None)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last").symlink_to("0000000001")
    begin(tmp_path, parts, tmp_path / "deleted", parts=["nonsense"])
    assert not changed(before, parts)


def test_no_random_numbers_are_drawn(make: Make, source: Path, tmp_path: Path) -> None:
    parts, before = make(), torch.get_rng_state()
    begin(tmp_path, parts, source, parts=["alg.network"])
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("parts", "prefixes"),
    [
        (["alg"], ["alg."]),
        (["processor"], ["processor."]),
        (["alg.network.critics", "processor"], ["alg.network.c", "alg.target.c", "processor."]),
        (["alg.target"], ["alg.target."]),
        ([ACTOR_WEIGHT], [ACTOR_WEIGHT, "alg.target.actor.0.0.weight"]),
    ],
)
def test_only_the_chosen_parts_and_their_targets_change(
    make: Make, source: Path, tmp_path: Path, parts: list[str], prefixes: list[str]
) -> None:
    new = make()
    before = new.state()
    begin(tmp_path, new, source, parts=parts)
    expected = {name for name in before if name.startswith(tuple(prefixes))}
    assert changed(before, new) == expected
    assert expected


def test_a_part_ends_at_a_dot(make: Make, source: Path, tmp_path: Path) -> None:
    parts = make()
    line = assert_unchanged_by(
        lambda: begin(tmp_path, parts, source, parts=["processor", "alg.net"]), parts
    )
    assert "init_parts: alg.net is not a part" in line
    assert "alg, alg.network, alg.target, processor, processor.registered," in line
    assert "alg.network.actor" not in line
    assert line.endswith("did you mean 'alg.network'?")
    names = {name: torch.zeros(1) for name in ("alg.net", "alg.net.x", "alg.network.x")}
    assert list(select(names, ["alg.net"])) == ["alg.net", "alg.net.x"]


def test_a_target_network_follows_the_network_that_was_chosen(
    make: Make, trained: Parts, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    parts = make()
    begin(tmp_path, parts, source, parts=["alg.network"])
    expected = dict(trained.alg.network.state_dict())
    for module in (parts.alg.network, parts.alg.target):
        torch.testing.assert_close(dict(module.state_dict()), expected, rtol=0, atol=0)
    assert "frozen copies of these follow (alg.target.actor" in caplog.text


def test_a_target_that_is_not_in_the_file_follows_too(
    make: Make, trained: Parts, tmp_path: Path
) -> None:
    weights = trained.weights()
    weights["alg"] = {k: v for k, v in weights["alg"].items() if not k.startswith("target")}
    save(tmp_path / "source", weights)
    parts = make()
    begin(tmp_path, parts, tmp_path / "source", strict=False)
    for name, value in trained.alg.network.state_dict().items():
        assert value.equal(parts.alg.target.state_dict()[name])


def test_strict_names_what_does_not_fit_and_changes_nothing(
    make: Make, trained: Parts, tmp_path: Path
) -> None:
    weights = trained.weights()
    weights["alg"]["extra"] = torch.zeros(2)
    weights["alg"]["network.actor.0.0.weight"] = torch.zeros(8, 4)
    weights["processor"] = {}
    save(tmp_path / "source", weights)
    parts = make()
    line = assert_unchanged_by(lambda: begin(tmp_path, parts, tmp_path / "source"), parts)
    assert "3 missing (processor.registered.0.count, " in line
    assert "1 unexpected (alg.extra)" in line
    assert f"1 of another shape or type ({ACTOR_WEIGHT} (8, 4) float32, not (8, 3) float32)" in line
    assert line.endswith("try init_strict=false")
    begin(tmp_path, parts, tmp_path / "source", parts=["alg.network.critics"])


def test_not_strict_takes_what_fits_and_reports_the_rest(
    make: Make, trained: Parts, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = make([8, 6])
    before, stored = parts.state(), trained.state()
    same_shape = {name for name, value in before.items() if value.shape == stored[name].shape}
    begin(tmp_path, parts, source, strict=False)
    assert changed(before, parts) == same_shape
    assert all(parts.state()[name].equal(stored[name]) for name in same_shape)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    num_left = len(before) - len(same_shape)
    assert f"{num_left} of another shape or type (alg.network.actor" in warning.getMessage()
    assert f"and {num_left - 3} more" in warning.getMessage()


@pytest.mark.parametrize("strict", [True, False])
def test_a_source_of_which_nothing_fits_is_refused(
    make: Make, source: Path, tmp_path: Path, strict: bool
) -> None:
    plain = make(normalises=False)
    save(tmp_path / "plain", plain.weights())
    choose_nothing = partial(begin, parts=["processor"], strict=strict)
    line = assert_unchanged_by(lambda: choose_nothing(tmp_path, plain, tmp_path / "plain"), plain)
    assert "nothing of" in line
    assert_unchanged_by(lambda: choose_nothing(tmp_path, plain, source), plain)


def test_floats_are_cast_and_other_types_are_not(
    make: Make, trained: Parts, tmp_path: Path
) -> None:
    weights = trained.weights()
    weights["alg"] = {name: value.double() for name, value in weights["alg"].items()}
    save(tmp_path / "double", weights)
    parts = make()
    begin(tmp_path, parts, tmp_path / "double")
    assert not changed(trained.state(), parts)
    weights["alg"]["network.actor.0.0.weight"] = torch.ones(8, 3, dtype=torch.complex64)
    save(tmp_path / "complex", weights)
    line = assert_unchanged_by(lambda: begin(tmp_path, parts, tmp_path / "complex"), parts)
    assert "(8, 3) complex64, not (8, 3) float32" in line


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e300])
def test_weights_that_are_not_finite_are_refused(
    make: Make, trained: Parts, tmp_path: Path, value: float
) -> None:
    weights = trained.weights()
    weights["alg"]["target.actor.0.0.bias"] = torch.full((8,), value, dtype=torch.float64)
    save(tmp_path / "source", weights)
    parts = make()
    refused = partial(begin, tmp_path, parts, tmp_path / "source")
    assert "alg.target.actor.0.0.bias" in assert_unchanged_by(refused, parts)
    begin(tmp_path, parts, tmp_path / "source", parts=["alg.network"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"alg": [1], "processor": {}}, "its alg is a list"),
        ({"alg": {}}, "its processor is a NoneType"),
        ({"alg": {3: torch.zeros(1)}, "processor": {}}, "a name in its alg is not text"),
        ({"alg": {"a\nb": torch.zeros(1)}, "processor": {}}, "a name in its alg is not text"),
        ({"alg": {"x": "y"}, "processor": {}}, "its alg.x is no dense tensor"),
        ({"alg": {"x": {}}, "processor": {}}, "its alg.x is no dense tensor"),
        ({"alg": {"x": torch.eye(2).to_sparse()}, "processor": {}}, "its alg.x is no dense"),
        ({"alg": {"x": torch.zeros(2, device="meta")}, "processor": {}}, "its alg.x is no dense"),
        ({"alg": {"x": torch.zeros(1).expand(2**40)}, "processor": {}}, "nothing of"),
        ([], "is not a checkpoint"),
        ({"alg": Path("/"), "processor": {}}, "is damaged or not a checkpoint"),
    ],
)
def test_a_hostile_file_is_refused(make: Make, tmp_path: Path, content: Any, words: str) -> None:
    save(tmp_path / "source", content)
    parts = make()
    refused = partial(begin, tmp_path, parts, tmp_path / "source", strict=False)
    assert words in assert_unchanged_by(refused, parts)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "does not exist"),
        ("empty", "holds no checkpoint"),
        ("gone", "weights.pt is missing"),
        ("loop", "weights.pt is damaged"),
    ],
)
def test_a_source_without_weights_is_named(
    make: Make, tmp_path: Path, name: str, words: str
) -> None:
    for folder, link in (("gone", "0000000001"), ("loop", "best")):
        (tmp_path / folder / "checkpoints").mkdir(parents=True)
        (tmp_path / folder / "checkpoints/best").symlink_to(link)
    (tmp_path / "empty").mkdir()
    parts = make()
    line = assert_unchanged_by(lambda: begin(tmp_path, parts, tmp_path / name), parts)
    assert words in line
    assert name in line


def test_open_episodes_of_the_other_run_are_not_taken_over(
    make: Make, tmp_path: Path, spaces: Spaces
) -> None:
    """Their sums of rewards, of another number of environments, are extra state."""

    def with_rewards() -> Parts:
        processor = NormaliseRewards(*spaces, discount=0.9, clip=10.0, epsilon=1e-8)
        return Parts(make().alg, processor)

    other, into = with_rewards(), with_rewards()
    assert isinstance(other.processor, NormaliseRewards)
    assert isinstance(into.processor, NormaliseRewards)
    other.processor.sums = torch.rand(4)
    other.processor.moments.variance.fill_(4.0)
    save(tmp_path / "source/checkpoints/last", other.weights())
    begin(tmp_path / "run", into, tmp_path / "source")
    assert into.processor.moments.variance == 4
    assert len(into.processor.sums) == 0
