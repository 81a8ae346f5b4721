"""Whether a run directory may be resumed with a config, and whose run it is."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.config import to_plain
from research.differences import LENGTHS, differences
from research.errors import UserError
from research.files import read_text, write_whole
from research.status import BLANK, read_status
from research.training.saving.retention import holds_checkpoints

STRUCTURE = (
    *("alg._target_", "env._target_", "env.domain", "env.num_envs", "network.", "processor."),
    *("dataset.capacity", "dataset.n_step", "dataset.storage"),
)
"""If one of these keys changes, a checkpoint seldom fits."""

OF_HYDRA = re.compile(r"\$\{(hydra|now):")
"""Interpolations that Hydra's own resolvers answer."""

MAX_BYTES, MAX_DEPTH = 2**18, 50
"""A longer file, or a deeper one, is no config."""

MAX_CHANGES = 8
"""Shown of those between two configs."""


def is_as_long(cfg: DictConfig, run_dir: Path) -> bool:
    """Whether the run in a directory was configured to be as long as this one."""
    stored = read_config(run_dir)["trainer"]
    names = [key.removeprefix("trainer.") for key in LENGTHS]
    return all(stored.get(name) == cfg.trainer.get(name) for name in names)


def compare(cfg: DictConfig, run_dir: Path) -> list[str]:
    """The differences of ``cfg`` from the run in a directory, as far as ``resume`` allows them.

    A run without a checkpoint does not count: it starts again from the beginning.

    Raises:
        UserError: ``resume`` does not allow the run to continue, or the run has come further than
            ``trainer.total_steps``.

    """
    if not holds_checkpoints(run_dir):
        if cfg.resume == "must":
            raise UserError(f"resume=must, but {run_dir} holds no run")
        return []
    if cfg.resume == "never":
        raise UserError(f"resume=never, but {run_dir} holds a run; choose another hydra.run.dir")
    stored = read_config(run_dir)
    # First as written, since the stored file is not resolved; then with values resolved.
    written = dict(differences(stored, without_hydra(cfg)))
    resolved = dict(differences(stored, to_plain(cfg)))
    free = {"resume", "trainer.profile", *LENGTHS}
    changes = [written[path] for path in written if path in resolved and path not in free]
    if changes and cfg.resume != "override":
        fits = not any(path.startswith(STRUCTURE) for path in written if path not in free)
        accept = ", or accept it by resume=override" if fits else ""
        raise UserError(
            f"{run_dir} belongs to another config: {summary(changes)}; "
            f"choose another hydra.run.dir{accept}"
        )
    reached = (read_status(run_dir) or BLANK)["step"]
    if cfg.trainer.total_steps is not None and cfg.trainer.total_steps < reached:
        raise UserError(
            f"trainer.total_steps={cfg.trainer.total_steps} is below the {reached} steps "
            f"that {run_dir} has reached"
        )
    return changes


def summary(changes: Sequence[str]) -> str:
    """The first of these differences; those of keys that both configs have come before others."""
    ordered = sorted(changes, key=lambda change: " None" in change)
    more = [f"and {len(changes) - MAX_CHANGES} more"] if len(changes) > MAX_CHANGES else []
    return "; ".join([*ordered[:MAX_CHANGES], *more])


def without_hydra(cfg: DictConfig) -> dict[str, Any]:
    """The config as it is written, but for values that only a running Hydra can resolve."""

    def choose(written: Any, resolved: Any) -> Any:
        if isinstance(written, dict):
            return {key: choose(value, resolved[key]) for key, value in written.items()}
        if isinstance(written, list):
            return [choose(*pair) for pair in zip(written, resolved, strict=True)]
        return resolved if isinstance(written, str) and OF_HYDRA.search(written) else written

    return choose(OmegaConf.to_container(cfg), to_plain(cfg))


def read_config(run_dir: Path) -> dict[str, Any]:
    """The config that a run was started with, as it is written; nothing in it is built or resolved.

    Raises:
        UserError: there is none, or it is damaged.

    """
    plain: Any = OmegaConf.to_container(load_config(run_dir))
    return {str(key): value for key, value in plain.items()}


def load_config(run_dir: Path) -> DictConfig:
    """The same, with interpolations that resolve when they are read.

    Raises:
        UserError: there is none, or it is damaged.

    """
    path = run_dir / ".hydra" / "config.yaml"
    try:
        config = OmegaConf.create(read_yaml(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing, so whose checkpoints these are is unknown") from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split()) or "it holds no keys"
        raise UserError(f"{path} is no config: {reason}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} is no config: it holds a list")
    return config


def read_yaml(path: Path) -> str:
    """The text of a YAML file that anybody may have written.

    Raises:
        ValueError: it is something else, longer than ``MAX_BYTES``, nested deeper than
            ``MAX_DEPTH``, or has aliases, which can fill the memory.

    """
    text = read_text(path, max_bytes=MAX_BYTES)
    depth = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has aliases")
    return text


def read_files(folder: Path) -> dict[Path, bytes]:
    """The contents of the files in a folder."""
    return {path: path.read_bytes() for path in folder.glob("*") if path.is_file()}


def claim(cfg: DictConfig, run_dir: Path) -> None:
    """Write the config to ``.hydra/``, as Hydra would, but never over another run's."""
    hydra_cfg = HydraConfig.get()
    (run_dir / ".hydra").mkdir(parents=True, exist_ok=True)
    contents = {
        "config.yaml": OmegaConf.create(without_hydra(cfg)),
        "hydra.yaml": OmegaConf.create({"hydra": hydra_cfg}),
        "overrides.yaml": hydra_cfg.overrides.task,
    }
    for name, content in contents.items():
        write_whole(run_dir / ".hydra" / name, OmegaConf.to_yaml(content))
