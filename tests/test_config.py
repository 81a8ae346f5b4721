"""Config nodes are checked against what they call, and built only from trusted modules."""

import functools
import importlib
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from research.annotations import bounds_of, type_hints
from research.config import build, build_env, check, to_plain
from research.errors import UserError
from research.trust import INSTALLATION, TRUSTED_MODULES, locate
from tests.conftest import options

HERE = __name__
NEEDED = {"rollout": ["trainer/pace=on_policy"]}
"""Overrides that a choice needs beside it."""

UNBOUNDED = {
    *("alg.class_weights", "alg.entropy_per_action", "alg.target_entropy", "alg.top_k"),
    "env.camera_id",
    *(
        "network.log_std",
        "network.log_std_bounds",
        "processor.mean",
        "processor.processors[2].mean",
    ),
}
"""Numbers that may be any, or are checked against the data or a model."""
PARTS = ("alg", "network", "dataset", "processor", "trainer", "logger")


class Part:
    """A target for these tests."""

    def __init__(
        self,
        supplied: object,
        *,
        rate: float,
        count: int,
        sizes: Sequence[int],
        mode: Literal["max", "min"],
        inner: Callable[[], object] | None,
    ) -> None:
        if rate < 0:
            raise ValueError(f"rate must be at least 0, got {rate}")
        self.supplied, self.rate, self.inner, self.sizes = supplied, rate, inner, sizes


def node(**changes: object) -> DictConfig:
    """The valid node of a ``Part``, with changes; None removes a key."""
    valid: dict[str, Any] = {
        "_target_": "research.test_part.Part",
        "_partial_": True,
        "rate": 0.5,
        "count": 3,
        "sizes": [1, 2],
        "mode": "max",
        "inner": {"_target_": "torch.nn.ReLU", "_partial_": True},
    }
    merged = {key: value for key, value in (valid | changes).items() if value != "gone"}
    return OmegaConf.create({"part": merged, "trusted_modules": []}).part


@pytest.fixture(autouse=True)
def _part_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    module = types.ModuleType("research.test_part")
    module.Part = Part  # type: ignore[attr-defined]
    monkeypatch.setattr(Part, "__module__", "research.test_part")
    monkeypatch.setitem(sys.modules, "research.test_part", module)
    import research

    monkeypatch.setattr(research, "test_part", module, raising=False)


def test_a_partial_is_completed_by_its_collaborators() -> None:
    part = build(node(), "collaborator")
    assert (part.supplied, part.rate, part.sizes) == ("collaborator", 0.5, [1, 2])


def test_partials_are_plain_and_hold_no_omegaconf() -> None:
    part = build(node())
    assert type(part) is functools.partial
    assert type(part.keywords["inner"]) is functools.partial
    assert type(part.keywords["sizes"]) is list


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratee": 1}, ["part.ratee", "is not a known key", "did you mean 'rate'"]),
        ({"rate": "gone"}, ["part.rate is missing"]),
        ({"rate": "${other.rate}"}, ["part.rate takes the value of other.rate, which the config"]),
        ({"rate": "fast"}, ["part.rate must be a number", "'fast'"]),
        ({"rate": True}, ["part.rate must be a number", "True"]),
        ({"count": 1.5}, ["part.count must be an integer", "1.5"]),
        ({"count": 1e6}, ["part.count", "write 1000000"]),
        ({"count": True}, ["part.count must be an integer"]),
        ({"count": "???"}, ["part.count has no value"]),
        ({"sizes": 3}, ["part.sizes must be a list, each item an integer, got 3; write [3]"]),
        ({"sizes": ["a"]}, ["part.sizes", "'a'"]),
        ({"mode": "maxx"}, ["part.mode must be one of max, min", "did you mean 'max'"]),
        ({"inner": 3}, ["part.inner must be a node with a _target_ or null, got 3"]),
        ({"inner": {"_target_": "torch.nn.Rlu"}}, ["part.inner._target_", "'ReLU'"]),
        ({"inner": {"_target_": "torch.nn.ReLU", "in_place": True}}, ["part.inner.in_place"]),
        ({"rate": -1.0}, ["part: rate must be at least 0, got -1"]),
        ({"_target_": "research.nowhere.Part"}, ["part._target_", "research.nowhere"]),
    ],
)
def test_a_wrong_node_is_refused_by_its_full_path(changes: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        build(node(**changes), "collaborator")
    assert all(word in str(refusal.value) for word in words)
    assert "\n" not in str(refusal.value)


def test_null_and_integers_stand_where_they_may() -> None:
    part = build(node(inner=None, rate=2), "collaborator")
    assert (part.inner, part.rate) == (None, 2)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "pathlib.Path.write_text",
        "research.files.os.system",
        "research.trust.importlib.import_module",
        "research.config.build.__globals__",
        "research.config.functools.partial",
        "researchers.steal",
        "torch.load",
        "torch.nn.functional.warnings.warn",
    ],
)
def test_an_untrusted_target_is_refused_and_not_run(name: str) -> None:
    with pytest.raises(UserError, match="_target_"):
        build(node(inner={"_target_": name}), "collaborator")


def test_trusted_modules_open_the_door_for_what_they_name() -> None:
    assert locate("fractions.Fraction", "", ("fractions",)).__name__ == "Fraction"
    cfg = OmegaConf.create({"trusted_modules": ["fractions"], "x": {"_target_": "fractions.gcd"}})
    with pytest.raises(UserError, match="'fractions' has no 'gcd'"):
        build(cfg.x)


@pytest.mark.parametrize(
    ("group", "choice"),
    [(group, choice) for group in PARTS for choice in options(group)],
)
def test_every_yaml_binds_to_its_target(
    group: str, choice: str, load: Callable[..., DictConfig]
) -> None:
    needed = NEEDED.get(choice, [])
    cfg = load(f"{group}={choice}", *needed)
    packages = {name.partition(".")[0] for name in targets(to_plain(cfg[group]))}
    optional = sorted(packages & set(INSTALLATION))
    for name in optional:
        try:
            importlib.import_module(name)
        except Exception as error:  # made for another torch, torchvision fails in many ways
            pytest.skip(f"{group}={choice} needs {name}: {error}")
    check(load(f"{group}={choice}", *needed, f"trusted_modules=[{','.join(optional)}]"))


def targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` in a plain config."""
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "_target_")
    for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from targets(item)


@pytest.mark.parametrize(
    ("package", "mend"), [("timm", "pip install timm"), ("torchvision", "-e '.[vision]'")]
)
def test_an_optional_package_that_is_missing_is_named_with_what_installs_it(
    load: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, package: str, mend: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, f"{package}.models", raising=False)
    with pytest.raises(UserError) as caught:
        check(load(f"network={package}", "trusted_modules=[timm]"))
    start = f"network.model._target_: cannot import '{package}', it is not installed: "
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(mend)


def test_an_optional_package_for_another_torch_is_told_apart_from_a_missing_one(
    load: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"RuntimeError: operator .* the build that goes with"):
        check(load("network=timm", "trusted_modules=[timm]"))


class Other:
    """A part of another kind."""


class User:
    """Takes a ``Part`` and anything."""

    def __init__(self, part: Part, anything: Any, *, count: int) -> None:
        self.part = part


def test_a_part_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(User, "__module__", "research.test_part")
    monkeypatch.setattr(sys.modules["research.test_part"], "User", User, raising=False)
    user = {"_target_": "research.test_part.User", "_partial_": True, "count": 1}
    cfg = OmegaConf.create({"user": user, "trusted_modules": []})
    part = build(node(), "collaborator")
    assert build(cfg.user, part, Other()).part is part
    other = Other()
    assert build(cfg.user, other, part).part is other  # a user's own may only look alike
    monkeypatch.setattr(Other, "__module__", "research.test_part")
    with pytest.raises(UserError, match=r"^user: part must be of class Part, got Other; choose"):
        build(cfg.user, Other(), part)


def test_what_has_no_target_is_checked_too(load: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match=r"sed is not a known key.*did you mean 'seed'"):
        check(load("+sed=1"))
    with pytest.raises(UserError, match=r"seed must be an integer in .*, got 'one'"):
        check(load("seed=one"))
    with pytest.raises(UserError, match=r"resume must be one of auto, must, never"):
        check(load("resume=maybe"))


@pytest.mark.parametrize(("episodes", "num_envs"), [(None, 6), (7, 6), (6, 6), (5, 5), (1, 1)])
def test_an_evaluation_has_no_more_environments_than_episodes(
    load: Callable[..., DictConfig], episodes: int | None, num_envs: int
) -> None:
    cfg = load("env=gymnasium", "env.id=Pendulum-v1", "env.num_envs=6")
    with closing(build_env(cfg.env, episodes=episodes)) as env:
        assert env.num_envs == num_envs
    assert cfg.env.num_envs == 6


def test_an_evaluation_leaves_a_number_of_environments_that_is_none(
    load: Callable[..., DictConfig],
) -> None:
    cfg = load("env=gymnasium", "env.id=Pendulum-v1")
    OmegaConf.set_struct(cfg, False)
    cfg.env.num_envs = None
    with pytest.raises(UserError, match=r"env\.num_envs"):
        build_env(cfg.env, episodes=5)


SEEDS = "an integer in [0, {0}] or a list, each item an integer in [0, {0}]".format(2**63 - 1)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("alg.optim.lr=1e-3x", "alg.optim.lr must be a number, got '1e-3x'"),
        (
            "+alg.optim.betas=[0.9,x]",
            "alg.optim.betas must be a list of 2, each item a number, got ",
        ),
        ("+alg.optim.betas=[0.9]", "alg.optim.betas must be a list of 2, each item a number, got "),
        (f"seed={10**23}", f"seed must be {SEEDS}, got {10**23}"),
        ("seed=-1", f"seed must be {SEEDS}, got -1"),
        ("seed=[0,-1]", f"seed must be {SEEDS}, got [0, -1]"),
    ],
)
def test_numbers_are_refused_with_their_key_value_and_what_is_allowed(
    load: Callable[..., DictConfig], override: str, line: str
) -> None:
    with pytest.raises(UserError) as refusal:
        check(load(override))
    assert str(refusal.value).startswith(line)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["init_parts=[alg]"], r"init_parts=\['alg'\] needs init_from"),
        (["init_strict=false"], "init_strict=false needs init_from"),
        (["init_from=x", "init_parts=[]"], "init_parts is empty"),
        (["init_from=3"], "init_from must be text or null, got 3"),
        (["init_from=x", "init_parts=alg"], "init_parts must be .*, got 'alg'"),
        (["init_from=x", "init_parts=[alg,1]"], "init_parts must be"),
        (["init_from=x", "init_strict=null"], "init_strict must be true or false"),
    ],
)
def test_what_says_how_to_begin_is_refused_where_it_has_no_effect(
    load: Callable[..., DictConfig], overrides: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        check(load(*overrides))


def test_a_source_that_is_gone_matters_to_a_new_run_alone(load: Callable[..., DictConfig]) -> None:
    check(load("init_from=gone", "init_parts=[alg.network,processor]", "init_strict=false"))


def test_alg_brings_companions_and_the_command_line_wins(load: Callable[..., DictConfig]) -> None:
    cfg = load("alg=td3", "processor=normalise", "dataset.batch_size=32")
    assert cfg.processor._target_.endswith("NormaliseObservations")
    assert cfg.dataset.batch_size == 32
    optimizer = build(cfg.alg.optim)([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.Adam)


@pytest.mark.parametrize(
    ("overrides", "pace"),
    [
        ([], "OffPolicy"),
        (["trainer/pace=on_policy"], "OnPolicy"),
        (["trainer=offline"], None),
        (["trainer=offline", "trainer/pace=on_policy"], "OnPolicy"),
    ],
)
def test_a_trainer_has_the_pace_that_was_chosen(
    load: Callable[..., DictConfig], overrides: list[str], pace: str | None
) -> None:
    node = load("alg=td3", *overrides).trainer.pace
    assert (node and node._target_.rpartition(".")[2]) == pace


def test_numbers_of_a_pace_are_no_pace(load: Callable[..., DictConfig]) -> None:
    cfg = load("alg=drqv2", "env=cartpole", "trainer=offline")
    with pytest.raises(UserError, match=r"^trainer\.pace must be a node with a _target_ or null"):
        check(cfg)


def annotated(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The annotation of every parameter of ours in a plain node, by its key."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from annotated(inner, f"{path}.{key}")
    for index, inner in enumerate(value if isinstance(value, list) else ()):
        yield from annotated(inner, f"{path}[{index}]")
    if isinstance(value, dict) and str(value.get("_target_")).startswith("research."):
        hints = type_hints(locate(value["_target_"], path, TRUSTED_MODULES))
        yield from ((f"{path}.{name}", hints[name]) for name in hints.keys() & value.keys())


def beyond(annotation: Any) -> Iterator[Any]:
    """A value beyond every bound of an annotation; of a list's, beyond that of its last item."""
    for op, bound in bounds_of(annotation):
        yield bound + {"gt": 0, "ge": -1, "lt": 0, "le": 1}[op]
    origin = typing.get_origin(annotation)
    is_list, is_mapping = origin in (Sequence, tuple), origin is Mapping
    for part in typing.get_args(annotation):
        for wrong in beyond(part):
            yield [1, wrong] if is_list else {"name": wrong} if is_mapping else wrong


def is_unbounded(annotation: Any) -> bool:
    """Whether any number in an annotation has no bounds."""
    if typing.get_origin(annotation) is typing.Annotated:
        return False
    return annotation in (int, float) or any(map(is_unbounded, typing.get_args(annotation)))


@pytest.mark.parametrize(
    "group",
    [
        "alg",
        "dataset",
        "env",
        "network",
        "network/encoder",
        "processor",
        "trainer",
        "trainer/pace",
        "trainer/schedule",
    ],
)
def test_a_number_beyond_a_bound_is_refused_with_its_whole_key(
    load: Callable[..., DictConfig], group: str
) -> None:
    part, cases = group.partition("/")[0], []
    for choice in options(group):
        cfg = load(f"{group}={choice}", *NEEDED.get(choice, []))
        for key in OmegaConf.missing_keys(cfg):
            OmegaConf.update(cfg, key, "given")
        for key, annotation in annotated(to_plain(cfg[part]), part):
            assert not is_unbounded(annotation) or key in UNBOUNDED
            cases += [(cfg, key, wrong) for wrong in beyond(annotation)]
    assert cases
    for cfg, key, wrong in cases:
        changed = cfg.copy()
        OmegaConf.update(changed, key, wrong)
        with pytest.raises(UserError) as refusal:
            check(changed)
        line = str(refusal.value)
        assert line.startswith(f"{key} must be ")
        assert line.endswith(f", got {wrong}")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("alg.tau=0", "alg.tau must be a number in (0, 1], got 0"),
        ("alg.tau=nan", "alg.tau must be a number in (0, 1], got nan"),
        ("alg.explore_noise=-1", "alg.explore_noise must be a number of at least 0, got -1"),
        ("alg.actor_every=0", "alg.actor_every must be an integer of at least 1, got 0"),
        ("alg.actor_every=2.0", "must be an integer of at least 1, got 2.0; write 2"),
        ("alg.actor_every=0.0", "must be an integer of at least 1, got 0.0"),
        ("alg.actor_every=null", "must be an integer of at least 1, got None"),
        (
            "network.hidden_dims=[8,0]",
            "network.hidden_dims must be a list, each item an integer of at least 1, got [8, 0]",
        ),
        ("env.max_episode_steps=0", "must be an integer of at least 1 or null, got 0"),
    ],
)
def test_a_bound_is_told_in_words(
    load: Callable[..., DictConfig], override: str, told: str
) -> None:
    with pytest.raises(UserError) as error:
        check(load("alg=td3", "env=pendulum", override))
    assert str(error.value).endswith(told)
