"""The spaces that a run's policy was made for, as a file that its environment need not read."""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space, spaces

from research.errors import DamagedFile, UserError
from research.files import read_json, write_whole

NAME = "spaces.json"
MAX_BYTES = 2**26


class Spaces(NamedTuple):
    """The spaces on both sides of a policy and its processor.

    Attributes:
        observation: of one observation, as the processor takes it.
        action: of one action or target, as the processor returns it.
        own_observation: of the environment before it was standardised; None without one.
        own_action: of the environment's actions in its own units; None without one.

    """

    observation: Space[Any]
    action: Space[Any]
    own_observation: Space[Any] | None
    own_action: Space[Any] | None


def write_spaces(run_dir: Path, found: Spaces) -> None:
    """Write ``spaces.json``; a space of a class that it cannot express is left out.

    A policy without its spaces can be trained and evaluated, but not loaded alone.
    """
    content = {}
    for name, space in found._asdict().items():
        try:
            content[name] = None if space is None else to_plain(space)
        except TypeError:
            continue
    write_whole(run_dir / NAME, json.dumps(content) + "\n")


def read_spaces(run_dir: Path) -> Spaces:
    """The spaces of the run in a directory.

    Raises:
        UserError: the file is missing, damaged, or lacks a space.

    """
    path = run_dir / NAME
    try:
        content = read_json(path, max_bytes=MAX_BYTES)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: the run has not begun, or is of an earlier version"
        ) from error
    except (OSError, ValueError) as error:
        raise DamagedFile(f"{path} is damaged: {error}") from error
    found: dict[str, Any] = {}
    for name in Spaces._fields:
        if not isinstance(content, dict) or name not in content:
            raise UserError(f"{path} has no {name} space: it is of a class that has no JSON form")
        try:
            found[name] = None if content[name] is None else from_plain(content[name])
        except Exception as error:  # of gymnasium's constructors, for a file changed by hand
            raise DamagedFile(f"{path} is damaged: {name}: {error}") from error
    if found["observation"] is None or found["action"] is None:
        raise DamagedFile(f"{path} is damaged: a space is null")
    return Spaces(**found)


def to_plain(space: Space[Any]) -> dict[str, Any]:
    """A space in plain values.

    Raises:
        TypeError: for a class that is not in ``PARTS``.

    """
    for kind, describe in DESCRIPTIONS.items():
        if isinstance(space, kind):
            return {"type": kind.__name__, **describe(space)}
    raise TypeError(f"no JSON form for {space}")


def from_plain(content: Mapping[str, Any]) -> Space[Any]:
    """The inverse of ``to_plain``."""
    return CONSTRUCTORS[content["type"]](content)


def describe_bound(bound: np.ndarray) -> Any:
    """A bound, one number if all are the same; null where there is none."""
    values = bound.astype(object)
    values[~np.isfinite(bound)] = None
    return values.flat[0] if bound.size and (bound == bound.flat[0]).all() else values.tolist()


def make_bound(content: Any, shape: tuple[int, ...], missing: float) -> np.ndarray:
    """The inverse of ``describe_bound``."""
    values = np.array(content, dtype=object)
    filled = [missing if value is None else value for value in values.flat]
    return np.broadcast_to(np.array(filled, dtype=object).reshape(values.shape), shape)


def describe_box(space: Any) -> dict[str, Any]:
    """Shape, dtype and bounds."""
    low, high = describe_bound(space.low), describe_bound(space.high)
    return {"shape": list(space.shape), "dtype": str(space.dtype), "low": low, "high": high}


def make_box(content: Mapping[str, Any]) -> spaces.Box:
    """The inverse of ``describe_box``."""
    shape, dtype = tuple(content["shape"]), np.dtype(content["dtype"])
    low = make_bound(content["low"], shape, -np.inf).astype(dtype)
    high = make_bound(content["high"], shape, np.inf).astype(dtype)
    return spaces.Box(low, high, shape, dtype.type)


DESCRIPTIONS: dict[type[Space[Any]], Callable[[Any], dict[str, Any]]] = {
    spaces.Box: describe_box,
    spaces.Discrete: lambda space: {"n": int(space.n), "start": int(space.start)},
    spaces.MultiDiscrete: lambda space: {"nvec": space.nvec.tolist()},
    spaces.MultiBinary: lambda space: {"n": np.array(space.n).tolist()},
    spaces.Dict: lambda space: {"spaces": [[key, to_plain(part)] for key, part in space.items()]},
    spaces.Tuple: lambda space: {"spaces": [to_plain(part) for part in space]},
}
CONSTRUCTORS: dict[str, Callable[[Mapping[str, Any]], Space[Any]]] = {
    "Box": make_box,
    "Discrete": lambda content: spaces.Discrete(content["n"], start=content["start"]),
    "MultiDiscrete": lambda content: spaces.MultiDiscrete(content["nvec"]),
    "MultiBinary": lambda content: spaces.MultiBinary(content["n"]),
    "Dict": lambda content: spaces.Dict(
        OrderedDict((key, from_plain(part)) for key, part in content["spaces"])
    ),
    "Tuple": lambda content: spaces.Tuple([from_plain(part) for part in content["spaces"]]),
}
