"""How far a run is: the first columns of every row of its logs."""

from typing import NamedTuple


class Clock(NamedTuple):
    """How far a run is; these are the first columns of every row.

    Attributes:
        step: environment steps, or updates if there is no collector; TensorBoard's x axis.
        frames: simulated by the environments: environment steps times the action repeat, less the
            repeats that the end of an episode made superfluous.
        updates: of the algorithm.
        epoch: passes through the dataset.
        seconds: of training, earlier attempts included.

    """

    step: int
    frames: int
    updates: int
    epoch: int
    seconds: float


HEADER = ",".join(Clock._fields).encode()
"""The start of every log, which distinguishes it from a user's CSV file."""
