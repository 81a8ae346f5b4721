"""Differences between two trees of plain values, such as configs."""

from collections.abc import Iterator, Mapping
from typing import Any

LENGTHS = ("trainer.total_steps", "trainer.total_epochs")
"""Keys of a config whose values may grow when a run or a sweep is resumed."""


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The path of every key whose value differs, and ``key: old -> new``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}, key=str):
            inner = f"{path}.{key}" if path else str(key)
            yield from differences(old.get(key), new.get(key), inner)
    elif old != new:
        yield path, f"{path}: {old} -> {new}"
