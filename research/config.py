"""Builds objects from config nodes, which are checked first."""

import copy
import inspect
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from research.annotations import check_type, type_hints
from research.errors import UserError, did_you_mean, is_deliberate
from research.ranges import Seed
from research.trust import join_keys, locate, trusted_modules

SPECIAL_KEYS = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}

MOVED = {
    "alg.precision": "trainer.precision",
    "alg.accumulate": "trainer.accumulate",
    "alg.ema_decay": "trainer.ema_decay",
    "alg.compile": "trainer.execution=compile",
    "trainer.collector.warmup_steps": "trainer.pace.warmup_steps",
    "trainer.collector.updates_per_step": "trainer.pace.updates_per_step",
    "trainer.collector.steps_per_update": "trainer.pace.steps_per_update",
    "logger.tensorboard": "logger.trackers=[csv,tensorboard], or without tensorboard",
    "logger.wandb": "logger.trackers=[csv,tensorboard,wandb] and logger.wandb.project",
}
"""Keys, or values of keys, of earlier versions, and what has their effect now."""


class RunConfig(TypedDict):
    """The top level of a config: the run-wide keys, and one node per part."""

    seed: Seed | list[Seed]
    device: str
    name: str
    resume: Literal["auto", "must", "never", "override"]
    init_from: str | None
    init_parts: list[str] | None
    init_strict: bool
    trusted_modules: list[str]
    env: Mapping[str, Any]
    processor: Mapping[str, Any]
    network: Mapping[str, Any]
    alg: Mapping[str, Any]
    dataset: Mapping[str, Any]
    trainer: Mapping[str, Any]
    logger: Mapping[str, Any]


def check(cfg: DictConfig) -> None:
    """Bind every node that has a ``_target_`` to its signature, before anything is built.

    Raises:
        UserError: for the first unknown or missing key, wrong type, unset value, or target that
            does not exist or is not trusted; one line with the key's full path.

    """
    check_experiment()
    check_alg_env()
    root = to_plain(cfg)
    check_keys(root, set(RunConfig.__annotations__), path="")
    for key, annotation in typing.get_type_hints(RunConfig, include_extras=True).items():
        if key not in root:
            raise UserError(f"{key} is missing from the config")
        check_type(root[key], annotation, key)
    check_init(root)
    check_node(root, "", trusted_modules(cfg))


def check_experiment() -> None:
    """Refuse an experiment with another algorithm than the one that its numbers are for."""
    if not HydraConfig.initialized():
        return
    chosen = HydraConfig.get().runtime.choices
    alg = chosen_alg(str(chosen.get("experiment")))
    if alg not in (None, chosen.get("alg")):
        raise UserError(
            f"experiment={chosen['experiment']} is for alg={alg}, got alg={chosen['alg']}; leave "
            "out one of them (an experiment for any alg has no 'override /alg' in its defaults)"
        )


def check_alg_env() -> None:
    """Refuse an unknown ``alg_env``: Hydra ignores it, since a pair need not have a file."""
    if not (HydraConfig.initialized() and GlobalHydra.instance().is_initialized()):
        return
    chosen = HydraConfig.get().runtime.choices
    choice, pair = chosen.get("alg_env"), f"{chosen.get('alg')}_{chosen.get('env')}"
    options = GlobalHydra.instance().config_loader().get_group_options("alg_env")
    if choice not in {*options, pair, None}:
        raise UserError(
            f"alg_env={choice} is not a choice; allowed: {', '.join(options)}; '~alg_env' "
            f"takes none{did_you_mean(choice, options)}"
        )


def chosen_alg(experiment: str) -> str | None:
    """The algorithm that an experiment, or one that it builds upon, chooses; None for any."""
    sources = [source.path for source in HydraConfig.get().runtime.config_sources]
    files = [Path(source, "experiment", f"{experiment}.yaml") for source in sources]
    alg = None
    for file in [file for file in files if file.is_file()][:1]:
        for entry in OmegaConf.select(OmegaConf.load(file), "defaults") or ():
            if isinstance(entry, str) and entry != "_self_":
                alg = chosen_alg(entry) or alg
            elif not isinstance(entry, str):
                alg = next(
                    (entry[key] for key in entry if key.split() == ["override", "/alg"]), alg
                )
    return alg


def check_init(root: Mapping[str, Any]) -> None:
    """Refuse values without effect; only a new run checks whether ``init_from`` exists."""
    if root["init_parts"] == []:
        raise UserError("init_parts is empty; null takes all parts")
    if root["init_from"] is None and root["init_parts"] is not None:
        raise UserError(f"init_parts={root['init_parts']} needs init_from=...")
    if root["init_from"] is None and not root["init_strict"]:
        raise UserError("init_strict=false needs init_from=...")


def build(node: DictConfig, *collaborators: Any) -> Any:
    """The object that ``node`` describes, from ``construct_part`` or a rehearsal in its place."""
    return builder(node, *collaborators)


def construct_part(node: DictConfig, *collaborators: Any) -> Any:
    """Build the object that ``node`` describes, its inner nodes first.

    A node with ``_partial_: true`` is completed by ``collaborators``, its positional arguments;
    without them it is returned as a plain ``functools.partial``, free of Hydra's slow wrapper.

    Raises:
        UserError: a constructor refused its arguments (``ValueError``), the node is not valid, or a
            collaborator is not of the class that the constructor names.

    """
    path = str(node._get_full_key(None) or "")
    trusted = trusted_modules(node._get_root())
    plain = to_plain(node)
    check_node(plain, path, trusted)
    try:
        part = construct(plain, trusted)
        if collaborators:
            check_collaborators(part, collaborators, path)
            return part(*collaborators)
        if path == "env":
            check_env(part)
        return part
    except ValueError as error:
        if not is_deliberate(error):  # a bug in the constructor: show its traceback
            raise
        raise UserError(f"{path}: {error}") from error


def build_env(node: DictConfig, *, episodes: int | None = None, renders: bool = False) -> Any:
    """The environments that ``node`` describes, for evaluation: a key ``training`` becomes false.

    Args:
        node: the group ``env`` of a config.
        episodes: number of episodes of an evaluation, to which a larger ``num_envs`` is lowered;
            None leaves ``num_envs`` as it is.
        renders: whether to make them in this process, and able to render frames.

    Raises:
        UserError: as by ``build``, or they take no ``render_mode``.

    """
    num_envs = node.get("num_envs")
    has_idle = episodes is not None and isinstance(num_envs, int) and num_envs > episodes
    if not renders and "training" not in node and not has_idle:
        return build(node)
    root: Any = copy.deepcopy(node._get_root())
    OmegaConf.set_struct(root, False)
    if "training" in root.env:
        root.env.training = False
    if has_idle:
        root.env.num_envs = episodes
    if not renders:
        return build(root.env)
    if "subprocesses" in root.env:
        root.env.subprocesses = False
    if "kwargs" in root.env:
        root.env.kwargs.render_mode = "rgb_array"
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws frames without a screen
    try:
        return build(root.env)
    except UserError as error:
        if "render_mode" not in str(error):
            raise
        raise UserError(f"env cannot be rendered: {error}") from error


builder: Callable[..., Any] = construct_part
"""What ``build`` calls."""


def construct(value: Any, trusted: Sequence[str]) -> Any:
    """The object that a plain node describes; lists, dicts and scalars pass through."""
    if isinstance(value, list):
        return [construct(item, trusted) for item in value]
    if not isinstance(value, dict):
        return value
    arguments = {
        key: construct(item, trusted) for key, item in value.items() if key not in SPECIAL_KEYS
    }
    if "_target_" not in value:
        return arguments
    target = locate(value["_target_"], "", trusted)
    positional = construct(value.get("_args_", []), trusted)
    if value.get("_partial_", False):
        return partial(target, *positional, **arguments)
    return target(*positional, **arguments)


def to_plain(cfg: Any) -> Any:
    """Resolved dicts, lists and scalars; ``???`` stays as it is."""
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except InterpolationKeyError as error:
        key = str(error.full_key)
        missing = re.search("'(.*)'", str(error.msg))
        raise UserError(
            f"{key} takes the value of {missing[1] if missing else 'a key'}, which the config has "
            f"not; choose the parts that go together (see the file that sets {key}), or set {key}"
        ) from error
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from error


def check_node(value: Any, path: str, trusted: Sequence[str]) -> None:
    """Check a plain config value and everything in it."""
    if value == "???":
        raise UserError(f"{path} has no value; give it: {path}=...")
    if isinstance(value, list):
        for index, item in enumerate(value):
            check_node(item, f"{path}[{index}]", trusted)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        check_node(item, join_keys(path, str(key)), trusted)
    if "_target_" in value:
        check_call(value, path, locate(value["_target_"], path, trusted))


def check_call(node: dict[str, Any], path: str, target: Callable[..., Any]) -> None:
    """Check the node's keys and the types of its values against its target's signature."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return  # some builtins have no signature
    given = {key: value for key, value in node.items() if key not in SPECIAL_KEYS}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not open_ended:
        check_keys(given, {p.name for p in named}, path)
    supplied = len(node.get("_args_", []))
    positional = [p.name for p in named if p.kind is p.POSITIONAL_OR_KEYWORD]
    by_code = set(positional) if node.get("_partial_", False) else set(positional[:supplied])
    for parameter in named:
        required = parameter.default is parameter.empty and parameter.name not in by_code
        if required and parameter.name not in given:
            key = join_keys(path, parameter.name)
            raise UserError(f"{key} is missing; {node['_target_']} needs it")
    hints = type_hints(target)
    for key, value in given.items():
        check_value(value, hints.get(key, Any), join_keys(path, key))


def check_value(value: Any, annotation: Any, path: str) -> None:
    """Check a type; the message tells where a value of earlier versions has moved."""
    try:
        check_type(value, annotation, path)
    except UserError as error:
        if path not in MOVED:
            raise
        raise UserError(f"{error}; use {MOVED[path]}") from error


def check_collaborators(call: partial[Any], given: Sequence[Any], path: str) -> None:
    """Refuse a part of a class that a constructor does not take, such as an unsuitable network."""
    try:
        names = list(inspect.signature(call).parameters)
    except (TypeError, ValueError):
        return  # some builtins have no signature
    hints = {name: hint for name, hint in type_hints(call.func).items() if hint is not Any}
    for name, part in zip(names, given, strict=False):
        wanted = hints.get(name)
        is_ours = type(part).__module__.startswith("research.")  # a user's may be duck-typed
        if getattr(wanted, "_is_protocol", False) or not inspect.isclass(wanted):
            continue
        if is_ours and not isinstance(part, wanted):
            raise UserError(
                f"{path}: {name} must be of class {wanted.__name__}, got {type(part).__name__}; "
                f"choose another {name}, or another {path}"
            )


def check_env(env: Any) -> None:
    """Refuse an environment that is not a vector environment, which has ``num_envs``."""
    if not hasattr(env, "num_envs"):
        name = env.__name__ if inspect.isclass(env) else type(env).__name__
        raise UserError(
            f"env must be a vector environment, got {name}; register it with gymnasium, in a "
            "module of yours, and choose it by env=gymnasium env.id=my_module:Name-v0"
        )


def check_keys(given: Mapping[str, Any], known: set[str], path: str) -> None:
    """Refuse an unknown key; the message names the nearest known one."""
    for key in given:
        if key not in known:
            allowed = ", ".join(sorted(known))
            guess = did_you_mean(key, known)
            full = join_keys(path, key)
            if line := explain_move(full):
                raise UserError(line)
            raise UserError(
                f"{full} is not a known key; allowed: {allowed}{guess}{how_to_drop(full)}"
            )


def explain_move(key: str) -> str | None:
    """One line for a key of earlier versions; None for another."""
    return f"{key} is not a known key any more; use {MOVED[key]}" if key in MOVED else None


def how_to_drop(key: str) -> str:
    """A hint for a key that comes from a file, such as an algorithm's for another environment."""
    if not HydraConfig.initialized():
        return ""
    typed = {each.lstrip("+").partition("=")[0] for each in HydraConfig.get().overrides.task}
    return "" if key in typed else f"; '~{key}' takes it away"
