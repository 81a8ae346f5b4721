"""The GPUs that jobs may use, and the environment variables that keep a job in its slot."""

import ctypes
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from research.errors import UserError, did_you_mean
from research.machine.slots import Slot

THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS"),
    *("OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
)
ROOT = Path("/")
EGL_CUDA_DEVICE_NV = 0x323A  # of the extension EGL_NV_device_cuda
EGL_DEVICES = 10  # mujoco and dm_control look at no more


class Gpu(NamedTuple):
    """A GPU; ``index`` is in PCI order, as in NVIDIA's driver, ``migs`` its MIG devices' UUIDs."""

    index: int
    uuid: str
    migs: tuple[str, ...] = ()


def usable_gpus(
    choice: str | Sequence[str | int],
    *,
    environ: Mapping[str, str] = os.environ,
    root: Path = ROOT,
) -> list[str] | None:
    """The GPUs that ``choice`` (``auto`` or a list) selects, as CUDA_VISIBLE_DEVICES names them.

    ``auto`` selects those in CUDA_VISIBLE_DEVICES if that is set, else all GPUs, and the MIG
    devices of a divided one. If CUDA_VISIBLE_DEVICES is set, listed indices count within it, as in
    CUDA. The result is None if there are no GPUs, [] if none are wanted or all are hidden.

    Raises:
        UserError: ``choice`` is invalid, or names a GPU twice or one that is known not to exist.

    """
    present = find_gpus(environ.get("PATH", os.defpath), root)
    visible = visible_gpus(environ.get("CUDA_VISIBLE_DEVICES"), present)
    if choice == "auto":
        every = [name for gpu in present for name in gpu.migs or (str(gpu.index),)]
        return (every or None) if visible is None else visible
    if isinstance(choice, str) or not isinstance(choice, Sequence):
        hint = did_you_mean(choice, ["auto"])
        raise UserError(f"hydra.launcher.gpus must be auto or a list, got '{choice}'{hint}")
    names = [chosen_gpu(str(item).strip(), visible, present) for item in choice]
    if names and visible is None and not present and not has_driver(root):
        raise UserError(f"hydra.launcher.gpus=[{','.join(names)}], but there is no GPU here")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"hydra.launcher.gpus names {twice[0]} twice; to share it, set"
            " hydra.launcher.jobs_per_gpu"
        )
    return names


def has_driver(root: Path) -> bool:
    """Whether there is a GPU driver; in a container it may not list its GPUs."""
    return any((root / "dev").glob("nvidia*")) or (root / "dev/dxg").exists()


@functools.cache
def find_gpus(search_path: str, root: Path = ROOT) -> tuple[Gpu, ...]:
    """The NVIDIA GPUs here, listed by ``nvidia-smi`` on ``search_path``, else by driver files."""
    program = shutil.which("nvidia-smi", path=search_path) or "/no/nvidia-smi"
    try:
        text = subprocess.check_output(
            [program, "-L"], text=True, stderr=subprocess.DEVNULL, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        files = sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
        uuids = [re.findall(r"GPU-[0-9a-f-]+", path.read_text()) for path in files]
        return tuple(Gpu(index, found[0] if found else "") for index, found in enumerate(uuids))
    gpus = []
    for block in re.split(r"^(?=GPU )", text, flags=re.MULTILINE):
        if match := re.match(r"GPU (\d+): .*\(UUID: (GPU-[^)]+)\)", block):
            gpus.append(
                Gpu(int(match[1]), match[2], tuple(re.findall(r"UUID: (MIG-[^)]+)", block)))
            )
    return tuple(gpus)


def gpu_models(root: Path = ROOT) -> list[str]:
    """Names of the NVIDIA GPUs here, in the order of their indices, from the driver's own files.

    Asking torch would open a context on a GPU, even for a run on the CPU.
    """
    files = sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
    try:
        texts = [file.read_text() for file in files]
    except OSError:  # a container may list files that cannot be read
        return []
    return [name for text in texts for name in re.findall(r"Model:\s*(.+)", text)]


def driver_version(root: Path = ROOT) -> str | None:
    """The version of NVIDIA's driver; None: there is none."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    version = re.search(r"\d+\.\d[.\d]*", text)
    return version.group() if version else None


def visible_gpus(setting: str | None, present: Sequence[Gpu]) -> list[str] | None:
    """The GPUs that a value of CUDA_VISIBLE_DEVICES shows; None: it is not set.

    As in CUDA, a word that names no GPU hides itself and all after it: "-1" hides every GPU.
    """
    if setting is None:
        return None
    words = takewhile(is_gpu_name, map(str.strip, setting.split(",")))
    return [known_gpu(word, present, "CUDA_VISIBLE_DEVICES") for word in words]


def chosen_gpu(name: str, visible: Sequence[str] | None, present: Sequence[Gpu]) -> str:
    """The value of CUDA_VISIBLE_DEVICES for the GPU that a user lists as ``name``."""
    key = "hydra.launcher.gpus"
    if not is_gpu_name(name):
        allowed = "an index, a UUID (GPU-...) or a MIG name (MIG-...)"
        raise UserError(f"{key}: a GPU is named by {allowed}, got '{name}'")
    if visible is None:
        return known_gpu(name, present, key)
    if name.isdigit():
        found = list(visible[int(name) : int(name) + 1])
    else:
        full = known_gpu(name, present, key)
        same = find_gpu(full, present) or full
        found = [word for word in visible if (find_gpu(word, present) or word) == same]
    if not found:
        raise UserError(f"{key}: GPU {name} is not in CUDA_VISIBLE_DEVICES={','.join(visible)}")
    return found[0]


def is_gpu_name(word: str) -> bool:
    """Whether a word looks like an index, a UUID or a MIG name."""
    return re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", word) is not None


def known_gpu(name: str, present: Sequence[Gpu], source: str) -> str:
    """The full name of a GPU whose UUID may be abbreviated; ``name`` if no names are known."""
    if name.isdigit():
        known = [str(gpu.index) for gpu in present]
        found = [name] if name in known else []
    else:
        known = [word for gpu in present for word in (gpu.uuid, *gpu.migs) if word[:3] == name[:3]]
        found = [word for word in known if word.startswith(name)]
    # Old drivers say MIG-GPU-<uuid>/1/0, which nvidia-smi need not list; files list no MIG device.
    if not known or name.startswith("MIG-GPU-"):
        return name
    if len(found) != 1:
        raise UserError(f"{source}: '{name}' is not one of the GPUs here, {', '.join(known)}")
    return found[0]


def find_gpu(name: str, present: Sequence[Gpu]) -> Gpu | None:
    """The GPU with this index or UUID; None for a MIG device or an unknown name."""
    return next((gpu for gpu in present if name in (str(gpu.index), gpu.uuid)), None)


def gpu_uuids(
    names: Sequence[str], *, environ: Mapping[str, str] = os.environ, root: Path = ROOT
) -> list[str]:
    """The UUIDs of GPUs, which mean the same to every program; unknown names stay as they are."""
    present = find_gpus(environ.get("PATH", os.defpath), root)
    found = [(name, find_gpu(name, present)) for name in names]
    return [gpu.uuid if gpu and gpu.uuid else name for name, gpu in found]


def slot_environment(
    slot: Slot, environ: Mapping[str, str], *, root: Path = ROOT
) -> dict[str, str]:
    """The environment variables that keep a job in its slot, to be set on top of ``environ``.

    A lower limit on threads in ``environ`` is kept. The first of several GPUs renders.
    MUJOCO_EGL_DEVICE_ID is set only if that GPU's index among the EGL devices is known: if it is
    set, MuJoCo tries that device alone, otherwise each until one works.
    """
    variables = {name: str(thread_cap(name, slot.threads, environ)) for name in THREAD_VARIABLES}
    if slot.gpu is None:
        return variables
    variables |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": slot.gpu}
    present = find_gpus(environ.get("PATH", os.defpath), root)
    gpu = find_gpu(slot.gpu.partition(",")[0], present)
    # With MIG, CUDA numbers GPUs differently, and a divided GPU cannot render.
    if gpu and not any(each.migs for each in present) and gpu.index in egl_order():
        variables["MUJOCO_EGL_DEVICE_ID"] = str(egl_order()[gpu.index])
    return variables


def thread_cap(name: str, threads: int, environ: Mapping[str, str]) -> int:
    """The slot's threads or the user's if fewer; OMP_NUM_THREADS is the default of the others."""
    setting = environ.get(name) or environ.get("OMP_NUM_THREADS", "")
    own = re.match(r"\s*([1-9]\d*)", setting)  # OMP's may be a list: "4,2"
    return min(threads, int(own[1])) if own else threads


@functools.cache
def egl_order() -> Mapping[int, int]:
    """The EGL index of each GPU, by its index in PCI order, as far as EGL reports it.

    EGL has an order of its own, which CUDA_VISIBLE_DEVICES does not change; it may list the CPU, or
    in a container no GPU at all. A child process queries it, so that this one loads no driver.
    """
    environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, "-c", f"from {__name__} import write_egl_order as w; w()"]
    try:
        answer = subprocess.run(
            command, env=environment, capture_output=True, timeout=60, check=True
        )
        return {int(gpu): index for gpu, index in json.loads(answer.stdout).items()}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}


def write_egl_order() -> None:
    """Write ``{CUDA index: EGL index}`` as JSON to standard output."""
    egl = ctypes.CDLL("libEGL.so.1")
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    number = ctypes.POINTER(ctypes.c_int)
    list_type = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, number)
    query_type = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    list_devices = list_type(egl.eglGetProcAddress(b"eglQueryDevicesEXT"))
    query = query_type(egl.eglGetProcAddress(b"eglQueryDeviceAttribEXT"))
    devices, count, order = (ctypes.c_void_p * EGL_DEVICES)(), ctypes.c_int(), {}
    list_devices(EGL_DEVICES, devices, ctypes.byref(count))
    for index in range(count.value):
        gpu = ctypes.c_ssize_t(-1)
        if query(devices[index], EGL_CUDA_DEVICE_NV, ctypes.byref(gpu)) and gpu.value >= 0:
            order[gpu.value] = index
    sys.stdout.write(json.dumps(order))
