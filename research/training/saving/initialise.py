"""Initialisation of a run with the weights of another."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from research.algs.base import Algorithm
from research.errors import UserError, did_you_mean
from research.processors.base import Processor
from research.training.run import Run
from research.training.saving.checkpoint import load_file
from research.training.saving.retention import holds_checkpoints

Weights: TypeAlias = Mapping[str, Tensor]
"""Parameters and buffers by name, such as ``alg.network.actor.0.0.weight``."""

log = logging.getLogger(__name__)


def initialise(
    alg: Algorithm,
    processor: Processor,
    run: Run,
    source: str | None,
    *,
    parts: Sequence[str] | None,
    strict: bool,
) -> None:
    """Copy the weights and buffers of another run into ``alg`` and ``processor``.

    A run that has a checkpoint resumes from that instead, and nothing is read. A frozen copy, such
    as a target network, that gets no weights of its own gets those of its original; the algorithm
    lists both in ``copies``.

    Args:
        alg: as it was built.
        processor: as it was built.
        run: the run that begins.
        source: a run directory, for its best checkpoint (its last if it has no best), or a
            checkpoint; None for no other run.
        parts: what to copy, by the beginnings of names, such as ``alg.network``; None for all.
        strict: whether every tensor must have a counterpart of the same shape; if not, those
            without one stay as they are.

    Raises:
        UserError: nothing fits, a part is unknown, or the file is damaged or holds NaN or infinity;
            nothing is changed then.

    """
    if source is None or holds_checkpoints(run.folder):
        return
    folder = find_checkpoint(Path(source))
    modules = nn.ModuleDict({"alg": alg, "processor": processor})
    state, stored = modules.state_dict(), read_weights(folder / "weights.pt")
    if parts is not None:
        check_parts(parts, state)
    own, stored = select(state, parts), select(stored, parts)
    loaded = {
        name: value.to(own[name].dtype)
        for name, value in stored.items()
        if name in own and fits(value, own[name])
    }
    misfits = describe_misfits(own, stored, loaded)
    if strict and misfits:
        raise UserError(f"init_from: {folder} does not fit: {misfits}; try init_strict=false")
    if not loaded:
        raise UserError(f"init_from: nothing of {folder} fits{misfits and f': {misfits}'}")
    for name, value in loaded.items():
        if not value.isfinite().all():
            raise UserError(f"init_from: {name} of {folder} holds NaN or infinity")
    copies = {
        name: loaded[original]
        for name, original in copied_names(alg).items()
        if name not in loaded and original in loaded
    }
    modules.load_state_dict({**state, **loaded, **copies})
    log.info("init_from: %d of %d tensors from %s", len(loaded), len(own), folder)
    if copies:
        log.info("init_from: %d frozen copies of these follow (%s)", len(copies), few(copies))
    if misfits:
        log.warning("init_from: not all of %s fits: %s", folder, misfits)


def find_checkpoint(source: Path) -> Path:
    """The checkpoint's folder, for a run directory or a checkpoint.

    Raises:
        UserError: it does not exist, or holds no checkpoint.

    """
    if os.path.lexists(source / "weights.pt"):
        return Path(os.path.realpath(source))
    for folder in (source / "checkpoints" / "best", source / "checkpoints" / "last"):
        if os.path.lexists(folder):
            return Path(os.path.realpath(folder))
    problem = "holds no checkpoint" if os.path.lexists(source) else "does not exist"
    raise UserError(f"init_from={source} {problem}; name a run directory or one of its checkpoints")


def read_weights(path: Path) -> Weights:
    """The weights in a checkpoint's file.

    Raises:
        UserError: the file is damaged, or holds anything but dense tensors by name.

    """
    content, weights = load_file(path), {}
    for root in ("alg", "processor"):
        state = content.get(root)
        if not isinstance(state, dict):
            raise UserError(f"{path} is not a checkpoint: its {root} is a {type(state).__name__}")
        for name, value in state.items():
            if not (isinstance(name, str) and name.isprintable()):
                raise UserError(f"{path} is not a checkpoint: a name in its {root} is not text")
            if not (isinstance(value, Tensor) and is_dense(value)):
                raise UserError(f"{path} is not a checkpoint: its {root}.{name} is no dense tensor")
            weights[f"{root}.{name}"] = value
    return weights


def is_dense(value: Tensor) -> bool:
    """Whether a tensor has a shape and its values in memory."""
    return value.layout is torch.strided and not value.is_nested and value.device.type == "cpu"


def check_parts(parts: Sequence[str], names: Iterable[str]) -> None:
    """Raise UserError for a part that no name begins with."""
    paths = [name.split(".") for name in names]
    known = {".".join(path[:end]) for path in paths for end in range(1, len(path) + 1)}
    known |= {"alg", "processor"}
    for part in parts:
        if part not in known:
            allowed = ", ".join(sorted(name for name in known if name.count(".") < 2))
            raise UserError(
                f"init_parts: {part} is not a part of this run; allowed: {allowed}, and what lies "
                f"in them{did_you_mean(part, known)}"
            )


def select(weights: Weights, parts: Sequence[str] | None) -> Weights:
    """The weights that lie in ``parts``; None for all.

    The extra state of a module (``nn.Module.get_extra_state``) is of the run, and no weight.
    """
    prefixes = ("",) if parts is None else tuple(f"{part}." for part in parts)
    return {
        name: value
        for name, value in weights.items()
        if f"{name}.".startswith(prefixes) and not name.endswith("._extra_state")
    }


def fits(value: Tensor, own: Tensor) -> bool:
    """Whether a stored tensor may take the place of one of this run; floats are cast."""
    are_floats = value.is_floating_point() and own.is_floating_point()
    return value.shape == own.shape and (value.dtype == own.dtype or are_floats)


def describe_misfits(own: Weights, stored: Weights, loaded: Weights) -> str:
    """Counts and first names of the tensors without a counterpart; empty if all have one."""
    changed = [name for name in own if name in stored and name not in loaded]
    misfits = {
        "missing": [name for name in own if name not in stored],
        "unexpected": [name for name in stored if name not in own],
        "of another shape or type": [f"{n} {kind(stored[n])}, not {kind(own[n])}" for n in changed],
    }
    return "; ".join(f"{len(n)} {what} ({few(n)})" for what, n in misfits.items() if n)


def kind(value: Tensor) -> str:
    """Shape and type of the values, such as ``(3, 4) float32``."""
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def few(names: Iterable[str]) -> str:
    """The first three of the names."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def copied_names(alg: Algorithm) -> dict[str, str]:
    """The name of each tensor in a frozen copy, and the name of what it copies."""
    paths = {module: path for path, module in alg.named_modules(prefix="alg")}
    return {
        f"{paths[copy]}.{name}": f"{paths[original]}.{name}"
        for copy, original, *_ in alg.copies()
        for name in original.state_dict()
    }
