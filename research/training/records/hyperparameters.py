"""The config of a run as a flat table of hyperparameters."""

import math
from collections.abc import Mapping
from typing import TypeAlias

Flat: TypeAlias = dict[str, str | bool | int | float]

NO_HYPERPARAMETERS = ("device", "logger", "resume", "trusted_modules")
"""Keys of a config that say nothing of what is learned."""

OF_HYDRA = ("_partial_", "_args_", "_convert_", "_recursive_")


def hyperparameters_of(config: Mapping[str, object]) -> Flat:
    """The hyperparameters of a config, keys joined by dots; a part's name is its class."""
    return flatten({key: value for key, value in config.items() if key not in NO_HYPERPARAMETERS})


def flatten(nested: Mapping[str, object], path: str = "") -> Flat:
    """Nested mappings as one; all but bools and finite numbers become text.

    ``alg: {_target_: research.algs.td3.TD3, tau: 0.01}`` is ``alg: TD3`` and ``alg.tau: 0.01``.
    """
    flat: Flat = {}
    for key, value in nested.items():
        full = f"{path}.{key}" if path else key
        if key in OF_HYDRA:
            continue
        if key == "_target_":
            flat[path] = str(value).rpartition(".")[2]
        elif isinstance(value, Mapping):
            flat |= flatten(value, full)
        elif isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
            flat[full] = value
        else:
            flat[full] = str(value)
    return flat
