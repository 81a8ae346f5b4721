"""A trained policy as a file that needs nothing of this project: ONNX, or torch.export's."""

import importlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Dict
from torch import Tensor, nn

from research.batches import list_tensors, map_tensors
from research.errors import UserError, message_of
from research.files import write_whole
from research.results.load import CheckpointName, LoadedPolicy, load
from research.training.saving.spaces import to_plain

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference of an action of the file from the policy's own, where the file is checked."""

MAX_BATCH = 2**20


class ExportOptions(NamedTuple):
    """The options of the command.

    Attributes:
        format: ``onnx``, or ``torch`` for a ``.pt2`` file of torch.export.
        checkpoint: whose weights to export.
        out: the file; None for ``export/policy.onnx`` or ``.pt2`` in the run directory.
        trusted_modules: modules of yours that the config may name.

    """

    format: Literal["onnx", "torch"] = "onnx"
    checkpoint: CheckpointName = "best"
    out: str | None = None
    trusted_modules: Sequence[str] = ()


class Port(NamedTuple):
    """An input or output: its name, an example (2, ...), and for a memory where it begins."""

    name: str
    example: Tensor
    initial: Any = None


class PolicyModule(nn.Module):
    """From observations to actions in the environment's own units, without exploration.

    Its arguments are tensors (B, ...): the observation, or the parts of a Dict in its order; then
    the memory of the algorithm, and the infos that it acts on. It returns the actions, and the
    memory for the next step.

    Args:
        loaded: the policy. Its arithmetic is fp32, in whichever precision it was trained.

    """

    step: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, loaded: LoadedPolicy) -> None:
        super().__init__()
        policy = loaded.policy
        self.alg, self.processor = policy.alg, policy.processor
        space = loaded.spaces.observation
        self.keys = list(space.spaces) if isinstance(space, Dict) else None
        self.infos = list(loaded.config.trainer.infos or {})
        self.memory = self.alg.initial_memory(2)
        self.num_memories = len(list_tensors(self.memory)) if self.memory is not None else 0
        self.register_buffer("step", torch.tensor(float(loaded.step)))
        self.is_scaled = loaded.own_box is not None
        if loaded.own_box is not None:
            self.dtype = torch.from_numpy(loaded.own_box.low).dtype
            self.register_buffer("low", torch.from_numpy(loaded.own_box.low).double())
            self.register_buffer("high", torch.from_numpy(loaded.own_box.high).double())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        remaining = iter(inputs)
        obs: Any = next(remaining) if self.keys is None else {k: next(remaining) for k in self.keys}
        memory = self.memory
        if memory is not None:
            memory = map_tensors(lambda _: next(remaining), memory)
        info = {name: next(remaining) for name in self.infos}
        obs = self.processor.process_obs(obs)
        acted = self.alg.act_with_memory(obs, memory, info, self.step, False)
        action = self.processor.unprocess_action(acted.action)
        memories = [] if memory is None else list_tensors(acted.memory)
        return self.scale(action), *memories

    def scale(self, action: Tensor) -> Tensor:
        """Actions in [-1, 1] in the environment's own units, as ``research.envs.wrappers`` does."""
        if not self.is_scaled:
            return action
        share = (action.double() + 1) / 2
        scaled = ((1 - share) * self.low + share * self.high).to(self.dtype)
        return torch.minimum(
            torch.maximum(scaled, self.low.to(self.dtype)), self.high.to(self.dtype)
        )


def export_run(run_dir: Path, options: ExportOptions) -> Path:
    """Write the policy of a run; returns the file.

    Raises:
        UserError: there is no such policy, or as by ``export_policy``.

    """
    check_packages(options.format)
    loaded = load(run_dir, options.checkpoint, trusted_modules=options.trusted_modules)
    suffix = FORMATS[options.format][0]
    path = Path(options.out) if options.out else run_dir / "export" / f"policy{suffix}"
    if path.suffix != suffix:
        raise UserError(f"out={path} must end in {suffix} for format={options.format}")
    export_policy(loaded, path, options)
    return path


def export_policy(loaded: LoadedPolicy, path: Path, options: ExportOptions) -> None:
    """Write a policy, and beside it a JSON file that tells what goes in and out.

    Before it is kept, the file is run on random observations, one and three at a time, whose
    actions must be the policy's.

    Raises:
        UserError: it cannot be exported or written.

    """
    _, write, run = FORMATS[options.format]
    if loaded.policy.precision != "fp32":
        log.info("trained in %s; the export computes in fp32", loaded.policy.precision)
    module = PolicyModule(loaded).eval()
    inputs = input_ports(loaded, module)
    with torch.no_grad():
        outputs = output_ports(module, inputs)
        content = exported(write, module, inputs, outputs)
        check_same(lambda values: run(content, values), module, inputs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        facts = {"file": path.name, **describe(loaded, options, inputs, outputs)}
        write_whole(path.with_suffix(".json"), json.dumps(facts, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {message_of(error)}") from error


def input_ports(loaded: LoadedPolicy, module: PolicyModule) -> list[Port]:
    """What the module takes, with random examples."""
    space, memory = loaded.spaces.observation, module.memory
    parts = {"obs": space}
    if isinstance(space, Dict):
        parts = {f"obs.{key}": part for key, part in space.spaces.items()}
    ports = [Port(name, examples(part, 2)) for name, part in parts.items()]
    if memory is not None:
        for index, (one, two) in enumerate(
            zip(list_tensors(module.alg.initial_memory(1)), list_tensors(memory), strict=True)
        ):
            ports.append(Port(f"memory.{index}", two, one[0].tolist()))
    for name, shape in (loaded.config.trainer.infos or {}).items():
        ports.append(Port(f"info.{name}", torch.zeros(2, *shape)))
    return ports


def output_ports(module: PolicyModule, inputs: Sequence[Port]) -> list[Port]:
    """What the module returns."""
    found = module(*(port.example for port in inputs))
    names = ["action", *(f"next_memory.{index}" for index in range(module.num_memories))]
    return [Port(name, value) for name, value in zip(names, found, strict=True)]


def examples(space: Space[Any], count: int) -> Tensor:
    """Random elements of a space, (count, ...)."""
    space.seed(0)
    return torch.from_numpy(np.stack([np.asarray(space.sample()) for _ in range(count)]))


def exported(
    write: Callable[..., bytes], module: PolicyModule, inputs: list[Port], outputs: list[Port]
) -> bytes:
    """The content of the file.

    Raises:
        UserError: the policy does something that cannot be exported.

    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own code
            return write(module, inputs, outputs)
    except UserError:
        raise
    except Exception as error:  # torch raises many kinds for code that it cannot trace
        name = type(module.alg).__name__
        raise UserError(
            f"{name} cannot be exported: {first_line(error)}; its act, and process_obs of the "
            "processor, must be operations on tensors that do not branch on their values"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line that says what was wrong, of the first error that was raised."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def any_batch(inputs: Sequence[Port]) -> dict[str, Any]:
    """Tells torch.export that the first dimension of everything is the batch, of any size."""
    return {"inputs": ({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},) * len(inputs)}


def write_torch(module: PolicyModule, inputs: list[Port], outputs: list[Port]) -> bytes:
    """A ``.pt2`` file."""
    arguments = tuple(port.example for port in inputs)
    program = torch.export.export(module, arguments, dynamic_shapes=any_batch(inputs))
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in program.graph.nodes:
        if node.name in names and not node.users:  # only for training: critics, targets
            program.state_dict[names[node.name]] = nn.Parameter(torch.empty(0), requires_grad=False)
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def run_torch(content: bytes, values: Mapping[str, Tensor]) -> list[np.ndarray]:
    """What the program of a ``.pt2`` file returns."""
    program = torch.export.load(io.BytesIO(content)).module()
    return [value.numpy() for value in program(*values.values())]


def write_onnx(module: PolicyModule, inputs: list[Port], outputs: list[Port]) -> bytes:
    """An ONNX file, its weights inside."""
    arguments = tuple(port.example for port in inputs)
    program = torch.onnx.export(
        module, arguments, dynamo=True, dynamic_shapes=any_batch(inputs), verbose=False
    )
    assert program is not None, "there is no file to write it to"
    graph = program.model.graph
    # By hand: torch 2.6 takes no input_names beside dynamic_shapes.
    for values, ports in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for value, port in zip(values, ports, strict=True):
            value.name = port.name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "policy.onnx")
        program.save(str(path), external_data=False)
        return path.read_bytes()


def run_onnx(content: bytes, values: Mapping[str, Tensor]) -> list[np.ndarray]:
    """What an ONNX file returns."""
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in values.items()})


FORMATS: dict[str, tuple[str, Callable[..., bytes], Callable[..., list[np.ndarray]]]] = {
    "onnx": (".onnx", write_onnx, run_onnx),
    "torch": (".pt2", write_torch, run_torch),
}


def check_packages(form: str) -> None:
    """Refuse a format whose packages are missing.

    Raises:
        UserError: one is missing.

    """
    for name in ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ():
        try:
            importlib.import_module(name)
        except ImportError as error:
            hint = "pip install -e '.[export]'; format=torch needs none"
            raise UserError(f"ONNX needs the package {name}: {hint} ({error})") from error


def check_same(
    run: Callable[[Mapping[str, Tensor]], list[np.ndarray]],
    module: PolicyModule,
    inputs: Sequence[Port],
) -> None:
    """Refuse a file that acts otherwise than the policy.

    Raises:
        UserError: it does, or it does not take other batch sizes.

    """
    for count in (1, 3):
        index = torch.arange(count) % 2
        values = {port.name: port.example[index] for port in inputs}
        expected = [value.numpy() for value in module(*values.values())]
        try:
            found = run(values)
        except Exception as error:  # onnxruntime's own, and torch's for another batch size
            raise UserError(
                f"the exported {type(module.alg).__name__} does not run on a batch of {count}: "
                f"{first_line(error)}"
            ) from error
        for one, other in zip(found, expected, strict=True):
            scale = 1 + np.abs(other, dtype=np.float64)
            if np.any(np.abs(one.astype(np.float64) - other) > TOLERANCE * scale):
                name = type(module.alg).__name__
                raise UserError(f"the exported {name} acts otherwise than the policy; no file")


def describe(
    loaded: LoadedPolicy, options: ExportOptions, inputs: Sequence[Port], outputs: Sequence[Port]
) -> dict[str, Any]:
    """What a program that uses the file has to know."""
    spaces = {
        name: None if space is None else to_plain(space)
        for name, space in loaded.spaces._asdict().items()
    }
    return {
        "format": options.format,
        "run": loaded.config.name,
        "alg": loaded.config.alg._target_,
        "checkpoint": options.checkpoint,
        "step": loaded.step,
        "torch": torch.__version__,
        "inputs": [describe_port(port) for port in inputs],
        "outputs": [describe_port(port) for port in outputs],
        "spaces": spaces,
    }


def describe_port(port: Port) -> dict[str, Any]:
    """Name, shape, and dtype; and for a memory, what it is where an episode begins."""
    shape: list[int | str] = ["batch", *port.example.shape[1:]]
    dtype = str(port.example.dtype).removeprefix("torch.")
    begins = {} if port.initial is None else {"initial": port.initial}
    return {"name": port.name, "shape": shape, "dtype": dtype, **begins}
