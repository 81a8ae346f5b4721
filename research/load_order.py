"""The order in which libraries must be loaded."""

import sys
from contextlib import suppress


def load_triton() -> None:
    """Import triton, if torch is loaded and has it installed; call this before anything renders.

    Mesa renders in software by LLVM, triton compiles by an LLVM of its own, and both export the
    same symbols. Whichever is loaded second may be bound to the first one's: triton imported after
    the first frame ends the process by SIGSEGV (Mesa 22.3, by EGL and by OSMesa, torch 2.14.1),
    while Mesa loaded after triton renders the same frames. torch imports triton late, with the
    first optimizer, so that without this every run that renders first would end there.
    """
    if "torch" in sys.modules:
        with suppress(ImportError):  # a build of torch for CPUs has none
            import triton  # noqa: F401
