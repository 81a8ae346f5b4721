"""Imports what a config names, out of trusted modules only."""

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from research.errors import UserError, did_you_mean, iterate_causes
from research.hydra_versions import execution_whitelist

TRUSTED_MODULES = (
    "research",
    "torch.nn",
    "torch.optim",
    "torchvision",
    "timm.models.vision_transformer.VisionTransformer",
    "gymnasium",
    "dm_control",
    "numpy",
)
"""A ``_target_`` outside these is refused; ``trusted_modules=[mine]`` adds to them."""

INSTALLATION = {"timm": "pip install timm", "torchvision": "pip install -e '.[vision]'"}
"""How to get packages that only some choices need."""


def trusted_modules(cfg: Any) -> tuple[str, ...]:
    """The trusted module prefixes of a run with this root config."""
    return (*TRUSTED_MODULES, *(OmegaConf.select(cfg, "trusted_modules") or ()))


def locate(name: str, path: str, trusted: Sequence[str]) -> Callable[..., Any]:
    """Import ``name``; it and the module that defines it must lie in a trusted module.

    The second condition keeps out what a trusted module merely imports (``torch.os.system``).
    """
    key = join_keys(path, "_target_")
    allowed = f"allowed are {', '.join(trusted)}, and what trusted_modules=[...] adds"
    if not is_inside(name, trusted):
        raise UserError(f"{key}: '{name}' is not in a trusted module; {allowed}")
    try:
        with execution_whitelist(trusted):
            target = instantiate({"_target_": name, "_partial_": True}).func
    except Exception as error:
        raise UserError(f"{key}: {explain_import(name, error)}") from error
    packages = {module.partition(".")[0] for module in trusted}
    if not is_inside(getattr(target, "__module__", None) or "", packages):
        raise UserError(f"{key}: '{name}' is defined outside the trusted modules; {allowed}")
    return target


def is_inside(name: str, modules: Iterable[str]) -> bool:
    """Whether a dotted name lies in one of the modules."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def explain_import(name: str, error: BaseException) -> str:
    """One line for a target that cannot be imported, with the nearest name in its module."""
    for cause in iterate_causes(error):
        if isinstance(cause, UserError):
            return str(cause)
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as cause:
        return explain_package(module_name, cause)
    if hasattr(module, attribute):
        return f"cannot use '{name}': {error}"
    return f"'{module_name}' has no '{attribute}'{did_you_mean(attribute, vars(module))}"


def explain_package(module: str, error: Exception) -> str:
    """One line for a module that cannot be imported; what to do where its package is optional."""
    package = module.partition(".")[0]
    if package in INSTALLATION and importlib.util.find_spec(package) is None:
        return f"cannot import '{package}', it is not installed: {INSTALLATION[package]}"
    mend = ""
    if package in INSTALLATION and not isinstance(error, ModuleNotFoundError):
        mend = "; install the build that goes with this torch, from the same index of pytorch.org"
    return f"cannot import '{module}': {type(error).__name__}: {error}{mend}"


def join_keys(path: str, key: str) -> str:
    """``path.key``."""
    return f"{path}.{key}" if path else key
