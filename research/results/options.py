"""The words of a command line of results: paths, and options such as ``x=frames``."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from research.errors import UserError, did_you_mean


class Option(NamedTuple):
    """An option of the command line.

    Attributes:
        read: its value from the text; raises ``ValueError`` with what is allowed.
        default: as it would be typed; None: there is none.
        text: for ``--help``.

    """

    read: Callable[[str], Any]
    default: str | None
    text: str


def read_words(
    words: Sequence[str], options: Mapping[str, Option]
) -> tuple[list[str], dict[str, Any]]:
    """The paths and the options of a command line.

    Raises:
        UserError: an option is unknown, given twice or has a wrong value, or there is no path.

    """
    paths, given, filters = [], {}, []
    for word in words:
        key, is_option, text = word.partition("=")
        if not is_option or "/" in key or (key not in options and Path(word).exists()):
            paths.append(word)
        elif key not in options:
            allowed = ", ".join(options)
            raise UserError(f"no option {key}; allowed: {allowed}{did_you_mean(key, options)}")
        elif key == "filter":
            filters.append(text)
        elif key in given:
            raise UserError(f"{key} is given twice: {given[key]} and {text}")
        else:
            given[key] = text
    if not paths:
        raise UserError("no path is given; name a run, a sweep or a CSV file of published curves")
    defaults = {key: option.default for key, option in options.items() if option.default}
    values = dict.fromkeys(options) | {
        key: read_option(key, text, options[key]) for key, text in {**defaults, **given}.items()
    }
    return paths, {**values, "filter": filters, "by": values["by"] or []}


def read_option(key: str, text: str, option: Option) -> Any:
    """The value of an option."""
    try:
        return None if text in ("null", "") else option.read(text)
    except ValueError as error:
        raise UserError(f"{key}={text}: {error}") from error


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError("it must be a number above 0")
    return value


def share(text: str) -> float:
    """A number between 0 and 1."""
    value = positive(text)
    if value >= 1:
        raise ValueError("it must be a number between 0 and 1")
    return value


def names(text: str) -> list[str]:
    """Names between commas, in brackets or not."""
    return [name.strip() for name in text.strip("[]").split(",") if name.strip()]


def one_of(*choices: str) -> Callable[[str], str]:
    """Reads one of these words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"allowed: {', '.join(choices)}{did_you_mean(text, choices)}")
        return text

    return read


def describe_options(options: Mapping[str, Option]) -> str:
    """The options, for ``--help``."""
    lines = [
        f"  {key + '=' + (option.default or ''):18} {option.text}"
        for key, option in options.items()
    ]
    return "\n".join(["options:", *lines])
