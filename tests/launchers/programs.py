"""A Hydra program without torch, whose jobs do as they are told, and its command line."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

PROGRAM = '''
"""Each job notes its start and its end in a file of the program's folder."""

import os, sys, time
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig

HERE = Path(__file__).parent


@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(cfg):
    note(f"start {cfg.do} {cfg.seed}")
    if cfg.do == "fail":
        print("the log says why")
        raise ValueError("told to fail")
    if cfg.do == "kill":
        os.kill(os.getpid(), 9)
    if cfg.do == "exit":
        sys.exit(3)
    if cfg.do == "fix" and not (HERE / "fixed").exists():
        raise ValueError("not fixed yet")
    time.sleep(cfg.sleep_s)
    note(f"end {cfg.do} {cfg.seed}")
    return float(cfg.seed) + (10 if "torch" in sys.modules else 0)


def note(line):
    with (HERE / "journal").open("a") as file:
        file.write(line + "\\n")


if __name__ == "__main__":
    main()
'''

CONFIG = """
defaults:
  - _self_
  - override hydra/launcher: local
  - override hydra/sweeper: grid
do: work
seed: 0
sleep_s: 0
hydra:
  sweep: {dir: sweep, subdir: "${hydra.job.id}"}
  launcher: {stagger_s: 0}
"""


class Answer(NamedTuple):
    status: int
    out: str
    err: str


class Program:
    """The program in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sweep = folder / "sweep"
        text = PROGRAM.replace("config_path=None", f"config_path={str(folder)!r}")
        (folder / "program.py").write_text(text)
        (folder / "config.yaml").write_text(CONFIG)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start ``program.py -m`` with arguments."""
        return subprocess.Popen(
            [sys.executable, str(self.folder / "program.py"), "-m", *arguments],
            cwd=self.folder,
            env={**os.environ, "MARKER": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> Answer:
        """The answer of ``program.py -m`` to arguments."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        return Answer(process.returncode, out, err)

    def journal(self) -> list[str]:
        """What the jobs noted so far."""
        path = self.folder / "journal"
        return path.read_text().splitlines() if path.exists() else []
