"""Imports flow one way, so data does too; what must start fast imports no torch and no rich."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "networks": set(),
    "envs": set(),
    "processors": {"parallel"},
    "machine": set(),
    "parallel": {"machine"},
    "launchers": {"machine", "parallel"},
    "datasets": {"envs", "machine"},
    "algs": {"networks", "parallel"},
    "training": {"algs", "datasets", "processors", "parallel", "machine"},
    "results": {"config", "envs", "explain", "launchers", "machine", "resume", "training"},
}
SHARED = {
    *("annotations", "batches", "console", "crash", "differences", "errors", "files"),
    *("hydra_versions", "load_order", "process", "ranges", "signals", "status"),
}
MAY_IMPORT_HYDRA = {
    *("app.py", "config.py", "explain.py", "forecast.py", "hydra_versions.py", "rank.py"),
    *("rehearsal.py", "resume.py", "seeds.py", "trust.py"),
    "launchers",
    "results",
}
FILES = sorted((ROOT / "research").rglob("*.py"))


def imported(path: Path) -> tuple[set[str], set[str]]:
    """The parts of ``research`` that a file imports, and the other packages."""
    parts, packages = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            head, _, tail = name.partition(".")
            parts.add(tail.partition(".")[0]) if head == "research" else packages.add(head)
    return parts, packages


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    place = path.relative_to(ROOT / "research").parts[0]
    parts, packages = imported(path)
    if place in MAY_IMPORT:
        assert parts <= MAY_IMPORT[place] | SHARED | {place}
    if place not in MAY_IMPORT_HYDRA:
        assert not packages & {"hydra", "omegaconf"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_export_nothing(path: Path) -> None:
    assert path.name != "__init__.py" or path.read_text() == ""


@pytest.mark.parametrize(
    "module",
    [
        *("train", "research.app", "research.status", "research.sweep"),
        *(
            "research.launchers.local",
            "research.launchers.slurm.launch",
            "research.launchers.search",
        ),
    ],
)
def test_start_up_imports_neither_torch_nor_rich(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'rich'}} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
