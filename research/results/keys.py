"""What tells runs apart: the keys of their configs, by which they are grouped, chosen and named."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from omegaconf import OmegaConf

from research.differences import LENGTHS
from research.errors import UserError, did_you_mean
from research.files import read_text
from research.launchers.plan.names import labels
from research.results.runs import StoredRun
from research.training.records.hyperparameters import flatten

Values: TypeAlias = Mapping[str, Any]
"""Keys of a config and their values; ``alg`` and the other groups with the choice that was made."""

MAX_BYTES = 2**18
"""A longer file is not Hydra's."""

INCIDENTAL = (
    *("device", "logger", "name", "resume", "sweep", "trusted_modules", "trainer.checkpoints."),
    *("trainer.evaluation.", "trainer.log_every", "trainer.profile", "trainer.video_every"),
    *LENGTHS,
)
"""Keys, or how they begin, that may differ between runs of one experiment; any seed may, too."""


def values_of(run: StoredRun) -> dict[str, Any]:
    """The keys of a run, and their values; see ``values_from``."""
    config = OmegaConf.to_container(run.config)
    assert isinstance(config, dict)
    return values_from({str(key): node for key, node in config.items()}, choices(run.folder))


def values_from(config: Mapping[str, Any], chosen: Mapping[str, str]) -> dict[str, Any]:
    """The keys of a config with the choices that made it, and their values.

    ``alg`` is the choice of the command line or, if that is unknown, the name of the class. ``env``
    is the task's own name, such as ``cheetah_run`` or ``Pendulum-v1``; without an environment it is
    the dataset.
    """
    alg, dataset = (chosen.get(key) or class_of(config.get(key)) for key in ("alg", "dataset"))
    task = task_of(config.get("env")) or chosen.get("env", dataset)
    named = {**chosen, "alg": alg, "env": dataset if task == "dataset" else task}
    return {**flatten(config), **named}


def choices(folder: Path) -> dict[str, str]:
    """The choice for each config group, as Hydra wrote it; empty if that file is missing."""
    try:
        text = read_text(folder / ".hydra" / "hydra.yaml", max_bytes=MAX_BYTES)
        hydra = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        chosen = hydra["hydra"]["runtime"]["choices"].items()
        return {key: show(value) for key, value in chosen if "hydra/" not in key}
    except (OSError, ValueError, yaml.YAMLError, RecursionError, KeyError, TypeError):
        return {}  # the names of classes serve as well


def class_of(node: Any) -> str | None:
    """The name of the class that a node of a config builds, in lower case."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    return target.rpartition(".")[2].lower() if isinstance(target, str) else None


def task_of(env: Any) -> str | None:
    """The name of an environment's task: its id, or domain and task of the Control Suite."""
    if not isinstance(env, Mapping):
        return None
    if env.get("id"):
        return str(env["id"])
    return f"{env['domain']}_{env['task']}" if env.get("domain") and env.get("task") else None


def find_key(name: str, runs: Sequence[Values]) -> str:
    """The key that ``name`` means: itself, or the only key that ends in it, as ``lr`` may do.

    Raises:
        UserError: there is none, or there are several.

    """
    keys = list(dict.fromkeys(key for values in runs for key in values))
    if name in keys:
        return name
    ending = [key for key in keys if key.endswith(f".{name}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise UserError(f"{name} is the end of several keys: {', '.join(ending)}; name one of them")
    ends = dict.fromkeys(key.rpartition(".")[2] for key in keys)
    raise UserError(f"no run has the key {name}{did_you_mean(name, [*keys, *ends])}")


def varying(runs: Sequence[Values]) -> list[str]:
    """The keys that differ between runs of one algorithm on one task, incidental ones aside."""
    groups: dict[tuple[Any, Any], list[Values]] = {}
    for values in runs:
        groups.setdefault((values.get("alg"), values.get("env")), []).append(values)
    keys = dict.fromkeys(key for group in groups.values() for key in differing(group))
    return [
        key
        for key in keys
        if not (key.startswith(INCIDENTAL) or key.endswith("seed"))
        and ("." in key or all(key in values for values in runs))  # some choices are unknown
    ]


def differing(runs: Sequence[Values]) -> list[str]:
    """The keys whose values are not the same in all of these runs."""
    keys = dict.fromkeys(key for values in runs for key in values)
    return [key for key in keys if any(values.get(key) != runs[0].get(key) for values in runs)]


def group_keys(runs: Sequence[Values]) -> list[str]:
    """The keys that make a group of runs that differ in their seeds alone.

    A key that follows from others, as all of a network's do from the choice of the network, is left
    out.
    """
    kept = ["alg", "env"]
    for key in sorted(varying(runs), key=lambda key: "." in key):  # a choice says more in a word
        groups: dict[tuple[Any, ...], set[str]] = {}
        for values in runs:
            place = tuple(values.get(each) for each in kept)
            groups.setdefault(place, set()).add(show(values.get(key)))
        if any(len(shown) > 1 for shown in groups.values()):
            kept.append(key)
    is_one = len({values.get("alg") for values in runs}) < 2
    return kept[2:] if is_one and kept[2:] else ["alg", *kept[2:]]


def label(values: Values, keys: Sequence[str]) -> str:
    """The name of a run among others: ``td3``, ``lr=0.001`` or ``td3, lr=0.001``."""
    short = labels(keys)
    names = {key: f"{short[key]}=" for key in keys} | {"alg": "", "env": ""}
    there = [key for key in keys if key in values] or ["alg"]
    return ", ".join(names[key] + show(values.get(key)) for key in there)


def show(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value in (None, "None") else str(value).replace(", ", ",")


def in_order(values: Values, keys: Sequence[str]) -> list[tuple[bool, float, str]]:
    """What to sort runs by: numbers by size, then text."""
    ordered = []
    for key in keys:
        number = to_number(values.get(key))
        ordered.append((number is None, number or 0.0, show(values.get(key))))
    return ordered


def to_value(text: str) -> int | float | str:
    """What ``text`` is in a config, if it is a number, else itself."""
    number = to_number(text)
    return text if number is None else int(text) if text.isdigit() else number


def to_number(value: Any) -> float | None:
    """The number that a value is or is written as."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


class Filter:
    """Chooses runs: ``alg=td3``, ``lr=1e-3,3e-4`` (one of them), ``env!=cheetah_run``.

    Args:
        text: as it was typed.

    Raises:
        UserError: it is something else.

    """

    def __init__(self, text: str) -> None:
        match = re.fullmatch(r"([^=!]+)(!?)=(.+)", text)
        if match is None:
            raise UserError(f"filter={text} must be KEY=VALUE, KEY=VALUE,VALUE or KEY!=VALUE")
        self.text = text
        self.key, self.is_negative = match[1], bool(match[2])
        self.wanted = match[3].split(",") if not match[3].startswith("[") else [match[3]]

    def choose(self, runs: Iterable[Values]) -> list[bool]:
        """Whether each run is meant.

        Raises:
            UserError: no run is, or a value is that of none.

        """
        runs = list(runs)
        key = find_key(self.key, runs)
        there = Counter(show(values.get(key)) for values in runs)
        for value in self.wanted:
            if not any(is_same(value, values.get(key)) for values in runs):
                raise UserError(
                    f"filter={self.text}: no run has {key}={value}; "
                    f"there are {', '.join(there)}{did_you_mean(value, there)}"
                )
        chosen = [
            any(is_same(value, values.get(key)) for value in self.wanted) != self.is_negative
            for values in runs
        ]
        if not any(chosen):
            raise UserError(f"filter={self.text} leaves no run; there are {', '.join(there)}")
        return chosen


def is_same(text: str, value: Any) -> bool:
    """Whether a value is meant by ``text``; ``1e-3`` means 0.001."""
    number = to_number(text)
    return text == show(value) or (number is not None and number == to_number(value))
