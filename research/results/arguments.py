"""The command line of a command about runs: directories, and options as ``key=value``."""

import os
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.annotations import check_type
from research.config import to_plain
from research.errors import UserError, did_you_mean, message_of

Options = TypeVar("Options", bound=tuple[Any, ...])


def parse(words: Sequence[str], form: type[Options]) -> tuple[list[Path], Options]:
    """The directories among the words, and the options.

    A directory that is named like an option, such as ``seed=0``, is given as ``./seed=0``.

    Args:
        words: of the command line.
        form: a NamedTuple of the options, each with a default; ``env`` takes keys ``env.x``.

    Raises:
        UserError: an option is unknown or has a wrong value, or there is no directory.

    """
    hints = typing.get_type_hints(form, include_extras=True)
    given = [word for word in words if is_option(word, list(hints))]
    paths = [Path(word) for word in words if word not in given]
    if not paths:
        inside = next((f"; the directory is ./{word}" for word in given if Path(word).is_dir()), "")
        raise UserError(f"no run is given, only options{inside}" if given else "no run is given")
    try:
        values = to_plain(OmegaConf.from_dotlist(given))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{' '.join(given)} cannot be parsed: {message_of(error)}") from error
    for key, value in values.items():
        if key not in hints:
            allowed = ", ".join(f"{name}.x" if name == "env" else name for name in hints)
            guess = did_you_mean(key, hints)
            raise UserError(f"{key} is not an option; allowed: {allowed}{guess}")
        check_type(value, hints[key], key)
    return paths, form(**values)


def is_option(word: str, names: Sequence[str]) -> bool:
    """Whether a word is an option, not a directory; jobs of a sweep have names with ``=``, too."""
    key, equals, _ = word.partition("=")
    head, dot, _ = key.partition(".")
    if not equals or "/" in key:
        return False
    is_known = head in names and bool(dot) == (head == "env")
    return is_known or not os.path.lexists(word)
