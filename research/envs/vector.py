"""Several copies of an environment stepped together, in this process or in one process each."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from research.envs.resumable import Resumable
from research.envs.wrappers import standardise
from research.load_order import load_triton

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

    So no step mixes two episodes. Whoever steps them resets the finished ones, each with a seed:
    ``env.reset(seed=[...], options={"reset_mask": finished})``. ``metadata["action_repeat"]`` is
    the number of frames per step, ``metadata["frame_stack"]`` that of the frames that an
    observation shows (1: no stack), and ``metadata["is_resumable"]`` says that each is a
    ``Resumable``. ``wrap`` is put around each environment once it is standardised.

    Raises:
        ValueError: ``num_envs`` or ``action_repeat`` is below 1, or an action has no bound.

    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    if action_repeat < 1:
        raise ValueError(f"action_repeat must be at least 1, got {action_repeat}")
    make = partial(make_standardised, make_env, action_repeat, flatten_obs, wrap)
    if subprocesses:
        # Not fork: torch's threads do not survive it, and a child that uses torch then hangs.
        env = AsyncVectorEnv(
            [partial(make_in_child, make, os.getpid())] * num_envs,
            context="forkserver",
            autoreset_mode=AutoresetMode.DISABLED,
        )
    else:
        env = SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
    known = {"action_repeat": action_repeat, "is_resumable": True}
    env.metadata = {"frame_stack": 1, **env.metadata, **known}
    return env


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
        # They reach the whole group, or all of a batch job; the parent alone decides when to end.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=exit_with_parent, daemon=True).start()
    env = make_env()
    load_triton()  # the environment itself may have brought torch
    return env


def exit_with_parent() -> None:
    """Wait for the end of the parent, SIGKILL included, and end this process wherever it is."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a child process has a parent"
    parent.join()
    os._exit(1)
