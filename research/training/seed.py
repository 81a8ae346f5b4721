"""One seed, many independent generators."""

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from research.errors import UserError


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2**31) for one purpose of a run, such as ("episode", 3, 17).

    Independent for different seeds and purposes (NumPy's SeedSequence), and the same everywhere.

    Raises:
        UserError: for a negative seed.

    """
    if seed < 0:
        raise UserError(f"seed must be at least 0, got {seed}")
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in purpose]
    # A spawn key, because entropy is padded with zeros: there ("a",) and ("a", 0) are the same.
    return int(np.random.SeedSequence(seed, spawn_key=words).generate_state(1)[0] >> 1)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(derive_seed(seed, "python"))
    np.random.seed(derive_seed(seed, "numpy"))
    torch.manual_seed(derive_seed(seed, "torch"))


def random_state() -> dict[str, Any]:
    """The state of the global generators of Python, NumPy and torch, in plain values and tensors.

    GPUs are included once this process uses them; asking earlier would take memory on each.
    """
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [name, torch.tensor(np.asarray(keys).tolist()), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the global generators back to ``random_state()``, on the GPUs that are there."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Leave the global generators of Python, NumPy and torch as they were."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)
