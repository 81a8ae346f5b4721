"""A small Hydra app whose jobs keep a journal of their steps, and go on where it ends."""

import os
import subprocess
import time
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

ConfigStore.instance().store(name="config", node={"task": "a", "seed": 0, "steps": 10})


class Journal:
    """A file with a line for everything a job does: when, by which process, what."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner = f"{os.getpid()}.{started(os.getpid())}"
        self.lines = path.read_text().splitlines() if path.exists() else []

    def note(self, text: str) -> None:
        """Add a line; it is in the file even if this process is killed at once."""
        with self.path.open("ab", buffering=0) as file:
            file.write(f"{time.time():.3f} {self.owner} {text}\n".encode())

    def others(self) -> list[str]:
        """The processes that wrote to it before and are still alive."""
        owners = {line.split()[1] for line in self.lines}
        return [owner for owner in owners if started(int(owner.split(".")[0])) == since(owner)]


def started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def since(owner: str) -> str:
    """When the owner of a line started."""
    return owner.partition(".")[2]


@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(cfg: DictConfig) -> float:
    """Do the steps that are not in the journal yet."""
    journal = Journal(Path(HydraConfig.get().runtime.output_dir) / "journal.txt")
    journal.note("start")
    for other in journal.others():
        journal.note(f"beside {other}")
    subprocess.Popen(["sleep", "1000"])  # left behind, for the launcher to end
    for step in range(sum(" step " in line for line in journal.lines), cfg.steps):
        time.sleep(0.04 * (1 + cfg.seed))
        journal.note(f"step {step}")
    journal.note("end")
    return float(cfg.seed)


if __name__ == "__main__":
    main()
