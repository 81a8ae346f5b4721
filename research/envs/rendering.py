"""Puts off dm_control's choice of a rendering library to the first frame: runs may need none."""

import functools
import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from research.errors import UserError, message_of

HEADLESS = ("egl", "osmesa")
"""The values of MUJOCO_GL that need no screen, the one that may use a GPU first."""

TRIAL = """
import importlib, mujoco, os
context = importlib.import_module("mujoco." + os.environ["MUJOCO_GL"]).GLContext(8, 8)
context.make_current()
model = mujoco.MjModel.from_xml_string("<mujoco/>")
mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
"""
TRIAL_S = 60

PACKAGES = (
    "apt-get install libegl1 (MUJOCO_GL=egl, GPU or CPU) or libosmesa6 (MUJOCO_GL=osmesa, CPU)"
)


def import_suite() -> ModuleType:
    """``dm_control.suite``, changed to choose a rendering library only at the first frame.

    By default, dm_control chooses one while it is imported. That fails when MUJOCO_GL names a
    library that is not there, and without MUJOCO_GL it takes GLFW, which needs a screen.
    """
    if "dm_control._render" not in sys.modules:
        with environment_variable("MUJOCO_GL", "disabled"):
            import dm_control.suite
            from dm_control import _render
        setattr(_render, "Renderer", make_renderer)  # noqa: B010, pyright knows its first type
        # MuJoCo has marked attributes of the suite's own files as deprecated.
        logging.getLogger("absl").addFilter(lambda line: "compiler attribute" not in str(line.msg))
    import dm_control.suite

    return dm_control.suite


def make_renderer(max_width: int, max_height: int) -> Any:
    """A rendering context of the library that MUJOCO_GL names, or of the first that works.

    Raises:
        UserError: there is no such library, or it finds no device.

    """
    from dm_control import _render

    library = find_renderer()
    try:
        with environment_variable("MUJOCO_GL", library):
            importlib.reload(_render)
        if _render.BACKEND == "glfw" and sys.platform == "linux" and not has_screen():
            raise RuntimeError("it needs a screen")
        return _render.Renderer(max_width, max_height)
    except Exception as error:  # each library and driver has errors of its own
        setattr(_render, "Renderer", make_renderer)  # noqa: B010
        raise UserError(f"cannot render by {library} ({message_of(error)}); {PACKAGES}") from error


def has_screen() -> bool:
    """Whether a window could be opened."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def find_renderer() -> str:
    """The value of MUJOCO_GL to render with: the user's, or else the first that works here.

    Raises:
        UserError: it does not work, or none does.

    """
    chosen = os.environ.get("MUJOCO_GL", "")
    if sys.platform != "linux" or chosen not in ("", *HEADLESS):
        return chosen or "glfw"
    failures = []
    for library in (chosen,) if chosen else HEADLESS:
        failure = try_library(library)
        if failure is None:
            return library
        failures.append(f"{library} ({failure})")
    raise UserError(f"cannot render by {' or '.join(failures)}; {PACKAGES}")


@functools.cache
def try_library(library: str) -> str | None:
    """Why a library does not render here; None: it does.

    It is tried in a child process: a process that has loaded one of them cannot use another.
    """
    environment = {**os.environ, "MUJOCO_GL": library}
    try:
        trial = subprocess.run(
            [sys.executable, "-c", TRIAL],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TRIAL_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return message_of(error)
    if trial.returncode == 0:
        return None
    lines = [line for line in trial.stderr.splitlines() if line[:1].isalpha() and ":" in line]
    return lines[-1] if lines else f"it ended with status {trial.returncode}"


@contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for the body of a ``with``."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
