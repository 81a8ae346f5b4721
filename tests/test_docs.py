"""What the README and the documentation tell to be typed composes, and names keys that exist."""

import re
import shlex
import subprocess
import sys
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
from tests.training.toys import rows

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


def test_the_example_of_an_algorithm_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "your-own.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    config = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[0]
    (tmp_path / "conf" / "alg").mkdir(parents=True)
    (tmp_path / "conf" / "alg" / "ddpg.yaml").write_text(config.replace("research.algs.", ""))
    (tmp_path / "ddpg.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    small = ("dataset.capacity=1000", "dataset.batch_size=8", "network.hidden_dims=[8]")
    command = [
        *(sys.executable, ROOT / "train.py", "--config-dir", tmp_path / "conf", "alg=ddpg"),
        *("env=pendulum", "trainer.total_steps=60", "trainer.log_every=60", *small),
        *("trusted_modules=[ddpg]", f"hydra.run.dir={tmp_path / 'run'}"),
    ]
    subprocess.run(command, check=True, cwd=tmp_path)
    (row,) = rows(tmp_path / "run" / "train.csv")
    assert {"critic_loss", "actor_loss", "q"} < row.keys()
    assert row["updates"] == 57


@pytest.mark.parametrize(
    "module", ["research.doctor", "research.plot", "research.report", "research.sweep"]
)
def test_other_programs_are_told_of(module: str) -> None:
    assert any(f"python -m {module}" in line for line in commands())
