"""A slot in a few characters."""

import pytest

from research.launchers.show.progress import name_slot
from research.machine.slots import Slot


@pytest.mark.parametrize(
    ("cpus", "gpu", "shown"),
    [
        ((0, 1, 2), "0", "gpu 0 cpu 0-2"),
        ((0, 2), "0,1", "gpus 0,1 cpu 0,2"),
        ((), "GPU-aaaa1111-0000,GPU-aaaa2222-0000", "gpus GPU-aaaa1111,GPU-aaaa2222"),
        ((3,), "", "cpu 3"),
        ((), None, ""),
    ],
)
def test_a_place_is_named_by_its_gpus_and_cpus(
    cpus: tuple[int, ...], gpu: str | None, shown: str
) -> None:
    assert name_slot(Slot(0, cpus, 1, gpu)) == shown
