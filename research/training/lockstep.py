"""Several runs in one process, of one config but for the seed, which compute gradients together.

Each run is what it would be alone: its environments, dataset, optimizers, generators, directory.
Its code runs in a coroutine (a greenlet, so that none of it needs to know) until it needs a
gradient. When all wait for one, a single call computes the gradients of all, by ``torch.vmap`` over
the seeds, in as many kernels as one of them needs.
"""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from greenlet import greenlet
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from research.algs.base import Algorithm, Loss, Objective
from research.signals import StopRequest
from research.training.gradient import compiled, pure_gradient
from research.training.precision import Precision

if TYPE_CHECKING:
    from research.training.learner import Learner

Answer: TypeAlias = tuple[Loss, list[Tensor]] | None
"""A loss with its gradient by each parameter; None for a run that has to compute them itself."""

log = logging.getLogger(__name__)

CURRENT: ContextVar[str | None] = ContextVar("CURRENT", default=None)
"""The name of the run whose code is running."""


class Request(NamedTuple):
    """The gradient that a run waits for.

    Attributes:
        turn: updates that the run has begun, and number of its request in this update. Runs at the
            same turn are computed together, and those behind the others first.
        objective: whose gradient it is.
        parameters: by which to differentiate.
        arguments: of the loss.
        factor: of the gradient, (), or None for 1.

    """

    turn: tuple[int, int]
    objective: Objective
    parameters: Sequence[nn.Parameter]
    arguments: Sequence[Any]
    factor: Tensor | None


class Seat:
    """The place of one run among those in lockstep.

    Args:
        name: of the run.
        stop: asks all of them to end.

    """

    def __init__(self, name: str, stop: StopRequest) -> None:
        self.name = name
        self.stop = stop
        self.learner: Learner | None = None
        self.request: Request | None = None
        self.turn = (0, 0)
        self.result: Any = None
        self.error: BaseException | None = None
        self.generators = generators()

    def __call__(
        self,
        objective: Objective,
        parameters: Sequence[nn.Parameter],
        arguments: Sequence[Any],
        factor: Tensor | None,
    ) -> Answer:
        """A loss and its gradient times ``factor``, which may be None for 1."""
        assert self.learner is not None
        updates, count = self.turn
        now = self.learner.updates
        self.turn = (now, count + 1 if updates == now else 0)
        self.request = Request(self.turn, objective, parameters, arguments, factor)
        assert self.coroutine.parent is not None
        return self.coroutine.parent.switch()

    def begin(self, task: Callable[["Seat"], Any]) -> None:
        """Run a task up to its first request, or to its end."""

        def run(_: Answer) -> None:
            CURRENT.set(self.name)
            try:
                self.result = task(self)
            except BaseException as error:
                self.error = error

        self.coroutine = greenlet(run)
        self.go_on(None)

    def go_on(self, answer: Answer, error: BaseException | None = None) -> None:
        """Run up to the next request or to the end, with random numbers of this run's own."""
        self.request = None
        restore(self.generators)
        if error is None:
            self.coroutine.switch(answer)
        else:
            self.coroutine.throw(error)
        self.generators = generators()


def generators() -> tuple[Any, ...]:
    """The states of the global generators of Python, NumPy and torch."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def restore(states: tuple[Any, ...]) -> None:
    """Set the global generators back to ``generators()``."""
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


def run_in_lockstep(
    task: Callable[[Seat], Any],
    names: Sequence[str],
    stop: StopRequest,
    each: Callable[[], None] = lambda: None,
) -> list[Seat]:
    """Run a task for each name, all to their ends; the seats have the results and the errors.

    A run that fails, or ends early, leaves the others alone; KeyboardInterrupt ends all.

    Args:
        task: called at each seat.
        names: of the runs.
        stop: asks all of them to end.
        each: called before each computation.

    """
    outside = generators()
    seats = [Seat(name, stop) for name in names]
    try:
        for seat in seats:
            seat.begin(task)
            if type(seat.error) is KeyboardInterrupt:  # not Preempted, for which all save
                break
        go_on_together(seats, each)
    except BaseException as error:  # of what is between the runs
        for seat in seats:
            if seat.request is not None:
                seat.go_on(None, error)
        raise
    finally:
        restore(outside)
    return seats


def go_on_together(seats: Sequence[Seat], each: Callable[[], None]) -> None:
    """Answer the seats' requests until no run is left."""
    joint: JointGradients | None = None
    while waiting := [seat for seat in seats if seat.request is not None]:
        if any(type(seat.error) is KeyboardInterrupt for seat in seats):
            waiting[0].go_on(None, KeyboardInterrupt())
            continue
        each()
        first = min(seat.request.turn for seat in waiting if seat.request)
        group = [seat for seat in waiting if seat.request and seat.request.turn == first]
        try:
            if joint is None:
                joint = JointGradients(seats)
            answers = joint.compute(group)
        except BaseException as error:
            for seat in group:
                seat.go_on(None, error)
        else:
            for seat, answer in zip(group, answers, strict=True):
                seat.go_on(answer)


class JointGradients:
    """Computes the gradients of K algorithms at once.

    Their weights and buffers are moved into tensors (K, ...), of which each has a slice: so
    optimizers and checkpoints of each go on with its own. A loss that cannot be computed by
    ``torch.vmap``, because it draws random numbers, say, is left to each; and so are all losses on
    a CPU unless they are compiled, since there the eager ``torch.vmap`` takes longer.

    Args:
        seats: of K runs. What has ended by now has a slice that nobody reads.

    """

    def __init__(self, seats: Sequence[Seat]) -> None:
        self.seats = seats
        algs = [seat.learner and seat.learner.alg for seat in seats]
        first = next(seat.learner for seat in seats if seat.learner)
        self.alg: Algorithm = first.alg
        self.objectives = {each.name: each for each in first.objectives}
        self.precision: Precision = first.precision
        self.device = first.device
        self.compiles = first.execution == "compile"
        if self.device.type == "cpu":
            log.warning("on a CPU several seeds take no less time than as many processes do")
        self.names = {
            parameter: name for alg in algs if alg for name, parameter in alg.named_parameters()
        }
        self.buffers = [name for name, _ in self.alg.named_buffers()]
        own = [tensors_of(alg or self.alg) for alg in algs]
        self.tensors: dict[str, Tensor] = {}
        for name in own[0]:
            stacked = torch.stack([tensors[name].detach() for tensors in own])
            for alg, tensors, part in zip(algs, own, stacked, strict=True):
                if alg is not None:
                    tensors[name].data = part
            self.tensors[name] = stacked
        self.functions: dict[str, Callable[..., Any] | None] = {}

    def compute(self, group: Sequence[Seat]) -> list[Answer]:
        """The answers to the requests of some seats, which are at the same turn.

        All K are computed, so that a run's numbers do not depend on who else is in the group.
        """
        given = [(seat if seat in group else group[0]).request for seat in self.seats]
        requests = [request for request in given if request is not None]
        name, parameters = requests[0].objective.name, requests[0].parameters
        inputs = stack([(tuple(request.arguments), request.factor) for request in requests])
        if inputs is None:
            return [None] * len(group)
        trained = {self.names[each]: self.tensors[self.names[each]] for each in parameters}
        fixed = {key: each for key, each in self.tensors.items() if key not in trained}
        function = self.find_function(name, (trained, fixed, *inputs))
        if function is None:
            return [None] * len(group)
        changed = self.buffers if len(group) < len(self.seats) else []
        before = {key: self.tensors[key].clone() for key in changed}
        gradients, loss = function(trained, fixed, *inputs)
        answers = []
        for index, seat in enumerate(self.seats):
            if seat in group:
                own = Loss(**tree_map(itemgetter(index), loss))
                answers.append((own, [each[index] for each in gradients.values()]))
            else:
                for key, values in before.items():
                    self.tensors[key][index] = values[index]
        return answers

    def find_function(self, name: str, inputs: Any) -> Callable[..., Any] | None:
        """What computes an objective's gradients; None if each run has to."""
        if name not in self.functions:
            self.functions[name] = None
            objective = self.objectives[name]  # of the algorithm whose tensors are replaced
            pure = pure_gradient(self.alg, objective, self.precision, self.device)
            for function, told in self.candidates(pure):
                trained, fixed, *others = inputs
                copies = {key: each.clone() for key, each in fixed.items()}  # of the buffers
                try:
                    function(trained, copies, *others)
                except Exception as error:
                    log.warning("%s %s: %s", name, told, str(error).strip().partition("\n")[0])
                else:
                    self.functions[name] = function
                    break
        return self.functions[name]

    def candidates(self, pure: Callable[..., Any]) -> Iterator[tuple[Callable[..., Any], str]]:
        """Functions of stacked inputs, the fastest first, and what it means if one fails."""

        def joint(*inputs: Any) -> Any:
            dims = tree_map(lambda each: 0 if isinstance(each, Tensor) else None, inputs)
            return torch.vmap(pure, in_dims=dims, randomness="error")(*inputs)

        if self.compiles:
            yield compiled(joint), "is not compiled, for torch.compile cannot"
        if self.device.type != "cpu":
            yield joint, "is trained by each seed alone, for torch.vmap cannot"


def tensors_of(alg: Algorithm) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return {**dict(alg.named_parameters()), **dict(alg.named_buffers())}


def stack(trees: Sequence[Any]) -> Any:
    """Nested tuples and dicts of tensors (...) as one of tensors (K, ...); None if they differ."""
    leaves, specs = zip(*map(tree_flatten, trees), strict=True)
    if any(spec != specs[0] for spec in specs):
        return None
    stacked = []
    for values in zip(*leaves, strict=True):
        if not isinstance(values[0], Tensor):
            stacked.append(values[0])
        elif len({value.shape for value in values}) > 1:
            return None
        else:
            stacked.append(torch.stack(values))
    return tree_unflatten(stacked, specs[0])
