"""A small Hydra app whose jobs leave a mark when they begin, and sleep."""

import time
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

ConfigStore.instance().store(name="config", node={"number": 0, "sleep_s": 0.0, "marks": ""})


@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(cfg: DictConfig) -> None:
    """Be a short job."""
    (Path(cfg.marks) / str(cfg.number)).write_text(repr(time.time()))
    time.sleep(cfg.sleep_s)


if __name__ == "__main__":
    main()
