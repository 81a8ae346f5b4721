"""A stand-in for CUDA graphs on the CPU, with what makes them hard to use."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}
"""Operators that wait for a GPU."""


class Call(NamedTuple):
    """An operator with the memory that it was called on."""

    operator: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    results: Sequence[Tensor | None]


class Recorder(TorchDispatchMode):
    """Records every operator, and what the tensors that they change held before."""

    def __init__(self, *, may_wait: bool = False) -> None:
        super().__init__()
        self.may_wait = may_wait
        self.waited = False
        self.calls: list[Call] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        self.waited = self.waited or name in WAITS
        if self.waited and not self.may_wait:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        if func._schema.is_mutable or name == "aten::native_batch_norm":  # whose schema hides it
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor) and id(tensor) not in self.before:
                    self.before[id(tensor)] = (tensor, tensor.clone())
        result = func(*args, **kwargs)
        given = {storage(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        results = [
            each if storage(each) not in given else None
            for each in tree_leaves(result)
            if isinstance(each, Tensor)
        ]
        self.calls.append(Call(func, args, kwargs, results))
        return result


def storage(tensor: Tensor) -> int:
    """Tells apart the memory of tensors."""
    return tensor.untyped_storage().data_ptr()


class RecordedGraphs:
    """Graphs that repeat operators on the memory, and with the numbers, of their capture.

    As a CUDA graph's, a capture changes nothing, no tensor and no generator; it fails at what waits
    for the device; results are overwritten by the next replay.
    """

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.is_broken = False
        self.replays = 0

    def watch(self, function: Callable[[], T]) -> tuple[T, bool]:
        """See ``research.training.capture.Graphs``."""
        with Recorder(may_wait=True) as recorder:
            return function(), recorder.waited

    def capture(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """See ``research.training.capture.Graphs``."""
        generator = torch.get_rng_state()
        recorder = Recorder()
        try:
            with recorder:
                result = function()
        finally:
            torch.set_rng_state(generator)
            with torch.no_grad():
                for tensor, before in recorder.before.values():
                    tensor.copy_(before)

        @torch.no_grad()
        def replay() -> None:
            self.replays += 1
            for operator, args, kwargs, results in recorder.calls:
                new = [x for x in tree_leaves(operator(*args, **kwargs)) if isinstance(x, Tensor)]
                for place, value in zip(results, new, strict=True):
                    if place is not None:
                        place.copy_(value)

        return result, replay


class RefusedGraphs(RecordedGraphs):
    """Captures nothing: what is captured by others goes on eagerly, rounded as theirs."""

    def capture(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Raise a RuntimeError."""
        raise RuntimeError("operation not permitted when stream is capturing\nand more")
