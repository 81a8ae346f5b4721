"""Pretended machines."""

from pathlib import Path
from typing import Any

from research.machine.gpus import slot_environment, usable_gpus
from research.machine.slots import Slot

TWO_GPUS = """\
GPU 0: NVIDIA RTX A5000 (UUID: GPU-aaaa1111-0000-0000-0000-000000000000)
GPU 1: NVIDIA RTX A5000 (UUID: GPU-aaaa2222-0000-0000-0000-000000000000)
"""
MIG = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa1111-0000-0000-0000-000000000000)
  MIG 3g.20gb     Device  0: (UUID: MIG-bbbb1111-0000-0000-0000-000000000000)
  MIG 3g.20gb     Device  1: (UUID: MIG-bbbb2222-0000-0000-0000-000000000000)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa2222-0000-0000-0000-000000000000)
"""
UUIDS = [f"GPU-aaaa{n}-0000-0000-0000-000000000000" for n in (1111, 2222)]
MIGS = [f"MIG-bbbb{n}-0000-0000-0000-000000000000" for n in (1111, 2222)]


class Machine:
    """A pretended machine: files under a root, and a ``nvidia-smi`` of its own on PATH."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir()
        self.environ = {"PATH": str(root / "bin")}

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def nvidia_smi(self, text: str, code: int = 0) -> None:
        self.write("bin/nvidia-smi", f"#!/bin/sh\n[ $* = -L ] && echo '{text}'\nexit {code}\n")
        (self.root / "bin/nvidia-smi").chmod(0o755)

    def gpus(self, choice: Any, visible: str | None = None) -> list[str] | None:
        setting = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        return usable_gpus(choice, environ=self.environ | setting, root=self.root)

    def environment(self, slot: Slot, **environ: str) -> dict[str, str]:
        return slot_environment(slot, self.environ | environ, root=self.root)
