"""What the README and the documentation tell to be typed composes, and names keys that exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import open_dict

from research.config import check
from research.explain import first_value, is_override
from research.hydra_versions import VERSION_BASE
from tests.conftest import CONF

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> Iterator[str]:
    """Every command in a block of shell of every page, on one line."""
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            yield from block.replace("\\\n", " ").splitlines()


TRAINING = sorted({line for line in commands() if re.match(r"(\. .* && )?python train\.py", line)})


def test_there_are_commands() -> None:
    assert len(TRAINING) > 30


@pytest.mark.parametrize("line", TRAINING, ids=str)
def test_a_command_names_what_exists(line: str) -> None:
    words = shlex.split(line.partition("train.py")[2], comments=True)
    typed = OverridesParser.create().parse_overrides(list(filter(is_override, words)))
    mine = ("trusted_modules=", "alg=mine")  # a reader's own
    kept = [each for each in typed if not str(each.input_line).startswith(mine)]
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        overrides = ["name=test", *map(first_value, kept)]
        cfg = compose("config", overrides, return_hydra_config=True)
        with open_dict(cfg):
            del cfg["hydra"]
        check(cfg)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists() or (page.resolve().parent / target).exists()


@pytest.mark.parametrize("module", ["research.doctor", "research.sweep"])
def test_other_programs_are_told_of(module: str) -> None:
    assert any(f"python -m {module}" in line for line in commands())
