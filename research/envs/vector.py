"""Several copies of an environment stepped together, in this process or in one process each."""

import multiprocessing
import operator
import os
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from research.envs.resumable import Resumable
from research.envs.wrappers import standardise
from research.errors import UserError
from research.load_order import load_triton
from research.signals import OF_A_RUN, ignore

CLOSE_S = 10
"""How long an environment may take to close itself before its process is killed."""

Vector: TypeAlias = SyncVectorEnv | AsyncVectorEnv
"""The vector environments whose ``reset`` takes one seed for each."""


def vectorize(
    make_env: Callable[[], gymnasium.Env],
    *,
    num_envs: int,
    subprocesses: bool,
    action_repeat: int,
    flatten_obs: bool,
    wrap: Callable[[gymnasium.Env], gymnasium.Env] | None = None,
) -> Vector:
    """``num_envs`` standardised, resumable environments that never reset themselves.

    So no step mixes two episodes. The caller resets the finished environments, each with a seed:
    ``env.reset(seed=[...], options={"reset_mask": finished})``. ``metadata["action_repeat"]`` is
    the number of frames per step; ``infos["action_repeat/skipped_frames"]`` is the number left out
    because the episode ended. ``metadata["frame_stack"]`` is the number of frames that an
    observation shows (1: no stack), and ``metadata["is_resumable"]`` says that each is a
    ``Resumable``. ``wrap`` is put around each environment once it is standardised.

    Raises:
        ValueError: an action has no bound.

    """
    make = partial(make_standardised, make_env, action_repeat, flatten_obs, wrap)
    if subprocesses:
        # Not fork: torch's threads do not survive it, and a child that uses torch then hangs.
        env = Subprocesses(
            [partial(make_in_child, make, os.getpid())] * num_envs,
            context="forkserver",
            autoreset_mode=AutoresetMode.DISABLED,
        )
    else:
        env = SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
    known = {"action_repeat": action_repeat, "is_resumable": True}
    env.metadata = {"frame_stack": 1, **env.metadata, **known}
    return env


class Subprocesses(AsyncVectorEnv):
    """Environments in processes of their own; if a process ends, the error is one line.

    Unlike AsyncVectorEnv's, ``close`` does not wait for an environment that is in a step.
    """

    processes: list[Any]
    parent_pipes: list[Any]

    def _check_spaces(self) -> None:
        pairs = zip(self.parent_pipes, self.processes, strict=True)
        self.parent_pipes = [Pipe(*pair, index) for index, pair in enumerate(pairs)]
        super()._check_spaces()

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        """Raise the last error that environments reported, with its traceback as the cause."""
        last: BaseException | None = None
        for _ in filter(operator.not_, successes):
            index, _, error, trace = self.error_queue.get()
            error.__cause__ = RuntimeError(f"in the process of environment {index}:\n{trace}")
            self.parent_pipes[index].close()
            self.parent_pipes[index] = None
            last = error
        if last is not None:
            self._state = AsyncState.DEFAULT
            raise last

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Let the environments close themselves if all are idle; else kill their processes."""
        pairs = list(zip(self.parent_pipes, self.processes, strict=True))
        are_idle = self._state is AsyncState.DEFAULT and not terminate
        # One without a pipe has failed, and closes itself.
        are_idle = are_idle and all(process.is_alive() for pipe, process in pairs if pipe)
        for pipe, process in pairs:
            if not are_idle:
                process.kill()
            elif pipe is not None:
                with suppress(UserError):
                    pipe.send(("close", None))
                    pipe.recv()
            if pipe is not None:
                pipe.close()
        for process in self.processes:
            process.join(CLOSE_S)
            process.kill()
            process.join()


class Pipe:
    """The connection to an environment's process; its errors say how the process ended."""

    def __init__(self, connection: Connection, process: Any, index: int) -> None:
        self.connection = connection
        self.process = process
        self.index = index

    def send(self, message: Any) -> None:
        """Send a message to the environment."""
        try:
            self.connection.send(message)
        except OSError as error:
            raise self.explain_end() from error

    def recv(self) -> Any:
        """Wait for the environment's reply, and return it."""
        try:
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise self.explain_end() from error

    def explain_end(self) -> UserError:
        """The error that says how the process ended."""
        self.process.join(CLOSE_S)
        code = self.process.exitcode
        if code is None or code >= 0:
            return UserError(f"the process of environment {self.index} ended with status {code}")
        name = signal.Signals(-code).name
        hint = "; the system does so when memory runs out" if name == "SIGKILL" else ""
        return UserError(f"environment {self.index} was killed by {name}{hint}")

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is a reply."""
        return self.connection.poll(timeout)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self.connection.closed


def make_standardised(
    make_env: Callable[[], gymnasium.Env],
    action_repeat: int,
    flatten_obs: bool,
    wrap: Callable[[gymnasium.Env], gymnasium.Env] | None,
) -> gymnasium.Env:
    """One environment of a vector."""
    load_triton()
    env = standardise(make_env(), action_repeat=action_repeat, flatten_obs=flatten_obs)
    return Resumable(wrap(env) if wrap else env)


def make_in_child(make_env: Callable[[], gymnasium.Env], parent_pid: int) -> gymnasium.Env:
    """Build an environment in a child process that ends with its parent."""
    # AsyncVectorEnv builds one more in the parent, to read its spaces.
    if os.getpid() != parent_pid:
        # Signals reach a whole group or batch job, but the parent alone decides when to end.
        ignore(OF_A_RUN)
        threading.Thread(target=exit_with_parent, daemon=True).start()
    env = make_env()
    load_triton()  # the environment may have imported torch
    return env


def exit_with_parent() -> None:
    """Wait until the parent ends, even by SIGKILL, then end this process, whatever it is doing."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a child process has a parent"
    parent.join()
    os._exit(1)
