"""``train.py`` as a real process of its own, forked from one that has imported everything."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")


def train(folder: Path, *overrides: str) -> ForkServerProcess:
    """``python train.py hydra.run.dir=FOLDER ...``, started; it prints to ``<folder>.txt``."""
    return start(run, folder, overrides)


def start(function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A call in a process of its own, started."""
    SERVER.set_forkserver_preload(["tests.preload"])
    process = SERVER.Process(target=function, args=arguments)
    process.start()
    return process


def run(folder: Path, overrides: tuple[str, ...]) -> None:
    """Do in this process what the command does in its own."""
    import torch

    import train

    torch.set_num_threads(1)  # two of them share the machine
    torch.backends.cudnn.deterministic = True  # its fastest gradients differ from call to call
    output = os.open(folder.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["train.py", f"hydra.run.dir={folder}", *overrides]
    train.main()
