"""Optuna's distributions of the keys of a search, from Hydra's syntax for sweeps."""

import math
import warnings
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer, ValueType
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from research.errors import UserError


def parse(arguments: Sequence[str]) -> tuple[dict[str, BaseDistribution], dict[str, str]]:
    """The distributions of the keys to search, and the values of the others.

    Args:
        arguments: overrides; the last one for a key counts.

    Raises:
        UserError: no key is swept, or the sweep of one cannot be searched.

    """
    overrides = OverridesParser.create().parse_overrides(list(arguments))
    last = {override.get_key_element(): override for override in overrides}
    space = {key: distribution(each) for key, each in last.items() if each.is_sweep_override()}
    if not space:
        raise UserError(
            "there is nothing to search; give a key an interval, a range or several values: "
            "'alg.optim.lr=tag(log,interval(1e-4,1e-2))'"
        )
    fixed = {key: last[key].get_value_element_as_str() for key in last if key not in space}
    return space, fixed


def distribution(override: Override) -> BaseDistribution:
    """Optuna's distribution over the values of an override.

    Raises:
        UserError: it has none.

    """
    sweep, is_interval = override.value(), override.is_interval_sweep()
    tags = getattr(sweep, "tags", set())
    try:
        if override.value_type is ValueType.GLOB_CHOICE_SWEEP or getattr(sweep, "shuffle", False):
            raise ValueError("a search needs the values themselves, and has no order to shuffle")
        if tags - ({"log"} if is_interval else set()):
            raise ValueError("the only tag is log, of an interval; int(...) makes integers")
        if override.is_choice_sweep():
            choices = [
                value if isinstance(value, int | float) else Transformer.str(value)
                for value in override.sweep_iterator()
            ]
            return CategoricalDistribution(choices)
        bounds = ("start", "end") if is_interval else ("start", "stop", "step")
        numbers = [getattr(sweep, name) for name in bounds]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("the numbers must be finite")
        are_int = all(isinstance(number, int) for number in numbers)
        kind = IntDistribution if are_int else FloatDistribution
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a range may end between two steps
            scale = {"log": bool(tags)} if is_interval else {"step": numbers[2]}
            return kind(*numbers[:2], **scale)
    except ValueError as error:
        raise UserError(f"{override.input_line}: {error}") from error
