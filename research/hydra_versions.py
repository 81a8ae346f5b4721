"""Differences between Hydra 1.3 and 1.4."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import hydra
import hydra.utils

IS_1_3 = hydra.__version__.startswith("1.3.")

VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if IS_1_3 else {}
"""Later versions always behave so, and warn about the parameter."""

REPLACE: dict[str, Any] = {} if IS_1_3 else {"replace": True}
"""Lets a stored config replace another of the same name; 1.3 always does."""


def execution_whitelist(modules: Iterable[str]) -> AbstractContextManager[Any]:
    """Let Hydra build what is in one of the modules, besides what it already may build.

    Hydra 1.3 has no such list and builds almost everything.
    """
    if IS_1_3:
        return nullcontext()
    patterns = [pattern for module in modules for pattern in (module, f"{module}.*")]
    return hydra.utils.execution_whitelist(patterns)  # pyright: ignore[reportAttributeAccessIssue]
