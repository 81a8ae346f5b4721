"""Whether a config value fits the annotation of the parameter that it is for."""

import collections.abc
import inspect
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt

from research.errors import UserError, did_you_mean

OPERATORS = {"gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le}
"""What the bounds of annotated-types mean, by their names."""


def check_type(value: Any, annotation: Any, path: str) -> None:
    """Refuse a value that its annotation does not admit."""
    if not matches(value, annotation):
        is_int = is_whole_float(value) and matches(int(value), annotation)
        hint = f"; write {int(value)}" if is_int else ""
        hint = f"; write [{value}]" if matches([value], annotation) else hint
        choices = typing.get_args(annotation) if isinstance(value, str) else ()
        raise UserError(
            f"{path} must be {name_type(annotation)}, got {value!r}{hint}"
            f"{did_you_mean(value, choices)}"
        )


def check_numbers(options: Any, node: str) -> None:
    """Refuse a number in a dataclass that its annotation does not admit."""
    for name, annotation in typing.get_type_hints(type(options), include_extras=True).items():
        if isinstance(value := getattr(options, name), (int, float)):
            check_type(value, annotation, f"{node}.{name}")


def name_type(annotation: Any) -> str:
    """An annotation in the words of somebody who writes YAML."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return name_type(arguments[0]) + name_bounds(bounds_of(annotation))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is collections.abc.Callable or is_part(annotation):
        return "a node with a _target_"
    if origin in (list, tuple, collections.abc.Sequence):
        length = fixed_length(annotation)
        return f"a list{f' of {length}' if length else ''}, each item {name_type(arguments[0])}"
    if origin in (typing.Union, types.UnionType):
        names = [name_type(each) for each in arguments if not is_tensor(each)]
        return " or ".join(sorted(names, key=lambda name: name.startswith("a list")))
    if annotation in (None, type(None)):
        return "null"
    if inspect.isclass(annotation) and not arguments:
        return {
            "int": "an integer",
            "float": "a number",
            "bool": "true or false",
            "str": "text",
        }.get(annotation.__name__, annotation.__name__)
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def matches(value: Any, annotation: Any) -> bool:
    """Whether a plain config value fits ``annotation``; true if that cannot be known."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        bounds = bounds_of(annotation)
        return matches(value, arguments[0]) and all(OPERATORS[op](value, b) for op, b in bounds)
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, argument) for argument in arguments)
    if origin is Literal:
        return (type(value), value) in [(type(each), each) for each in arguments]
    if annotation in (None, type(None)):
        return value is None
    if is_tensor(annotation):
        return isinstance(value, dict)
    if isinstance(value, dict) and "_target_" in value:
        return annotation not in (int, float, bool, str)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    if origin in (list, tuple, collections.abc.Sequence):
        items = arguments[:1] if len(set(arguments) - {...}) == 1 else ()
        is_as_long = isinstance(value, list) and fixed_length(annotation) in (None, len(value))
        return is_as_long and all(matches(v, a) for v in value for a in items)
    if origin in (dict, collections.abc.Mapping):
        return isinstance(value, dict) and all(matches(v, arguments[1]) for v in value.values())
    if origin is collections.abc.Callable:
        return isinstance(value, dict)
    return not is_part(annotation)


def fixed_length(annotation: Any) -> int | None:
    """The number of items of a ``tuple[int, int]``; None for a list of any length.

    Libraries write ``tuple[int]`` for any length, too.
    """
    arguments = typing.get_args(annotation)
    is_fixed = typing.get_origin(annotation) is tuple and len(arguments) > 1
    return len(arguments) if is_fixed and ... not in arguments else None


def bounds_of(annotation: Any) -> list[tuple[str, float]]:
    """The bounds of an ``Annotated`` number, such as ``[("gt", 0), ("le", 1)]``; else none."""
    items = typing.get_args(annotation)[1:] if typing.get_origin(annotation) is Annotated else ()
    groups = [item if isinstance(item, GroupedMetadata) else [item] for item in items]
    parts = [part for group in groups for part in group if isinstance(part, (Gt, Ge, Lt, Le))]
    return [(op, getattr(part, op)) for part in parts for op in OPERATORS if hasattr(part, op)]


def name_bounds(bounds: Sequence[tuple[str, float]]) -> str:
    """Bounds in words: `` above 0``, `` of at least 1``, `` in (0, 1]``."""
    if len(bounds) == 2:
        (low_op, low), (high_op, high) = sorted(bounds, key=lambda bound: bound[0][0] == "l")
        opening, closing = "(["[low_op == "ge"], ")]"[high_op == "le"]
        return f" in {opening}{low}, {high}{closing}"
    words = {"gt": " above", "ge": " of at least", "lt": " below", "le": " of at most"}
    return "".join(f"{words[op]} {bound}" for op, bound in bounds)


def is_tensor(annotation: Any) -> bool:
    """Whether an annotation is torch's tensor, which no YAML can write."""
    return getattr(annotation, "__module__", "") == "torch" and annotation.__name__ == "Tensor"


def is_part(annotation: Any) -> bool:
    """Whether an annotation is a class of ours, which only a node with a ``_target_`` makes."""
    return inspect.isclass(annotation) and annotation.__module__.startswith("research.")


def is_whole_float(value: Any) -> bool:
    """Whether a value is a float without a fraction, such as 1e6."""
    return isinstance(value, float) and value.is_integer()


def type_hints(target: Callable[..., Any]) -> Mapping[str, Any]:
    """The annotations of a target's parameters; none where they cannot be evaluated."""
    try:
        return typing.get_type_hints(
            target.__init__ if inspect.isclass(target) else target, include_extras=True
        )
    except Exception:  # a library's annotation may name what only its type checker imports
        return {}
