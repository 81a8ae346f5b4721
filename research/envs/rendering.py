"""Puts off dm_control's choice of a rendering library to the first frame: training needs none."""

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from types import ModuleType
from typing import Any

from research.errors import UserError

LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
"""The headless choices of MUJOCO_GL and their libraries, the one that uses a GPU first."""

PACKAGES = (
    "apt-get install libegl1 (MUJOCO_GL=egl, GPU or CPU) or libosmesa6 (MUJOCO_GL=osmesa, CPU)"
)


def import_suite() -> ModuleType:
    """``dm_control.suite``; it looks for no rendering library before the first frame.

    Left alone, dm_control chooses one while it is imported. That fails when MUJOCO_GL names a
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
    """A rendering context of the library that MUJOCO_GL names, or of the first that is there.

    Raises:
        UserError: there is no such library, or it finds no device.

    """
    from dm_control import _render

    library = os.environ.get("MUJOCO_GL") or find_renderer()
    try:
        with environment_variable("MUJOCO_GL", library):
            importlib.reload(_render)
        if _render.BACKEND == "glfw" and sys.platform == "linux" and not has_screen():
            raise RuntimeError("it needs a screen")
        return _render.Renderer(max_width, max_height)
    except (ImportError, AttributeError, RuntimeError) as error:
        setattr(_render, "Renderer", make_renderer)  # noqa: B010
        raise UserError(f"cannot render by {library} ({error}); {PACKAGES}") from error


def has_screen() -> bool:
    """Whether a window could be opened."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def find_renderer() -> str:
    """The value of MUJOCO_GL that suits this machine, for a machine where the user gave none."""
    if sys.platform != "linux":
        return "glfw"
    for name, library in LIBRARIES.items():
        if find_library(library):
            return name
    raise UserError(f"rendering needs EGL or OSMesa, and neither is installed; {PACKAGES}")


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
