"""Functions of tensors as CUDA graphs, which run without Python between their kernels.

A graph reads and writes the memory that its function used when it was captured, and repeats the
Python of that one call: numbers, branches and tensors other than its inputs are what they were.
What is to change from call to call must be a tensor that changes in place.
"""

import logging
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from research.batches import copy_all, list_tensors, map_tensors

T = TypeVar("T")

WARM_UP = 3
"""Calls before a function is captured, in which its libraries and optimizers allocate memory."""

log = logging.getLogger(__name__)


class Graphs(Protocol):
    """Makes graphs of one device.

    Attributes:
        device: whose tensors they write.
        is_broken: whether a capture failed, after which no graph may be replayed.

    """

    device: torch.device
    is_broken: bool

    def watch(self, function: Callable[[], T]) -> tuple[T, bool]:
        """What ``function`` returns, and whether it waited for the device."""
        ...

    def capture(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """What ``function`` returns, not computed yet, and what computes it each time."""
        ...


class CudaGraphs:
    """Makes CUDA graphs, which share their memory: a result is overwritten by any later replay."""

    def __init__(self, device: torch.device) -> None:
        self.device = torch.empty(0, device=device).device  # with its index, as tensors have it
        self.is_broken = False
        self.pool: Any = None
        self.stream: Any = None

    def watch(self, function: Callable[[], T]) -> tuple[T, bool]:
        """See ``Graphs``; what another thread waits for, such as a batch, is none of its waits."""
        mode, thread, waits = torch.cuda.get_sync_debug_mode(), threading.get_ident(), []

        def note(message: Warning | str, *where: Any) -> None:
            if "synchronizing CUDA operation" not in str(message):
                show(message, *where)
            elif threading.get_ident() == thread:
                waits.append(message)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode")
            warnings.filterwarnings("always", message=".*synchronizing CUDA operation")
            show, warnings.showwarning = warnings.showwarning, note
            torch.cuda.set_sync_debug_mode("warn")
            try:
                result = function()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        return result, bool(waits)

    def capture(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """See ``Graphs``; draws of torch's default generator are new in each replay.

        Raises:
            RuntimeError: a graph cannot hold it. Earlier graphs may then hold the generator's
                state, and their replays fail.

        """
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[self.device.index]
        with torch.cuda.device(self.device):
            stream, before = torch.cuda.current_stream(), generator.clone_state()
            self.stream = self.stream or torch.cuda.Stream()  # torch's own is of the first GPU used
            # other threads, which gather batches, may allocate memory meanwhile
            mode = "thread_local"
            try:
                with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode=mode):
                    result = function()
            except BaseException:
                self.is_broken = True
                torch.cuda.set_stream(stream)
                generator.graphsafe_set_state(before)
                raise
        self.pool = self.pool or graph.pool()
        return result, graph.replay


class Recording(NamedTuple):
    """A captured function.

    Attributes:
        inputs: the tensors that it reads.
        outputs: in dicts and tuples, the tensors that it writes.
        replay: computes these from those.

    """

    inputs: Sequence[Tensor]
    outputs: Any
    replay: Callable[[], None]


class Captured:
    """Calls functions of tensors, from the fourth call on as a graph.

    Args:
        graphs: makes them.
        what: is said to run eagerly if it cannot be captured, like "the updates".
        level: of logging, at which that is said.

    """

    def __init__(self, graphs: Graphs, what: str, level: int = logging.WARNING) -> None:
        self.graphs = graphs
        self.what = what
        self.level = level
        self.is_refused = False
        self.calls: Counter[Hashable] = Counter()
        self.recordings: dict[Hashable, Recording] = {}

    def refuse(self, reason: str) -> None:
        """Call functions as they are from now on, and say why."""
        self.is_refused = True
        log.log(self.level, "%s run eagerly, not as CUDA graphs: %s", self.what, reason)

    def __call__(self, key: Hashable, function: Callable[[Any], Any], inputs: Any) -> Any:
        """``function(inputs)``, in tensors that later calls leave alone.

        Args:
            key: tells apart the functions, and what else they depend on but their inputs. For each
                key, and each shape of the inputs, there is a graph.
            function: takes and returns tensors in dicts and tuples.
            inputs: for it.

        """
        if self.graphs.is_broken and not self.is_refused:
            self.refuse("another capture failed")
        if self.is_refused:
            return function(inputs)
        tensors = list_tensors(inputs)
        key = (key, tuple((each.shape, each.dtype) for each in tensors))
        recording = self.recordings.get(key)
        if recording is None:
            self.calls[key] += 1
            # laid out as a graph's inputs will be, by which libraries choose their kernels
            places = map_tensors(Tensor.clone, inputs)
            if self.calls[key] < WARM_UP:
                return function(places)
            if self.calls[key] == WARM_UP:
                outputs, waited = self.graphs.watch(lambda: function(places))
                if waited:
                    self.refuse("they wait for the GPU, by .item() or the like")
                return outputs
            try:
                recording = self.recordings[key] = self.record(function, places)
            except Exception as error:  # if it is the function's own, the eager call will raise it
                self.refuse(str(error).strip().partition("\n")[0])
                return function(inputs)
        copy_all(recording.inputs, tensors)
        recording.replay()
        outputs = list_tensors(recording.outputs)
        copies = [torch.empty_like(output) for output in outputs]
        copy_all(copies, outputs)
        rest = iter(copies)
        return map_tensors(lambda _: next(rest), recording.outputs)

    def record(self, function: Callable[[Any], Any], places: Any) -> Recording:
        """Capture ``function(places)``, of which the graph keeps the memory.

        Raises:
            RuntimeError: it cannot be captured.

        """
        outputs, replay = self.graphs.capture(lambda: function(places))
        if others := {each.device for each in list_tensors(outputs)} - {self.graphs.device}:
            raise RuntimeError(f"a result is on {others.pop()}, where no graph changes it")
        return Recording(list_tensors(places), outputs, replay)
