"""Images of any dataset that torchvision knows: https://docs.pytorch.org/vision/stable/datasets.html."""

import importlib
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from research.batches import Example
from research.datasets.examples.dataset import Examples
from research.datasets.examples.decoding import read_rgb, silent_decoders, to_tensor
from research.datasets.examples.torchvision_files import damaged_file
from research.errors import UserError, did_you_mean, message_of
from research.ranges import NonNegativeInt, OpenFraction, PositiveInt

VALIDATION_SPLITS = ("val", "valid", "test")
"""torchvision's names of splits that are not learned from, the best choice first."""


def torchvision_examples(
    env: object,
    seed: int,
    *,
    name: str,
    root: str,
    download: bool,
    arguments: Mapping[str, Any],
    validation_arguments: Mapping[str, Any],
    size: tuple[PositiveInt, PositiveInt] | None,
    channels: Literal[1, 3] | None,
    validation: OpenFraction | Literal["own"] | None,
    split_seed: NonNegativeInt,
    num_classes: PositiveInt | None,
    batch_size: PositiveInt,
    num_workers: NonNegativeInt,
    device: str,
) -> Examples:
    """A dataset of torchvision's, its training split unless ``arguments`` choose another.

    Args:
        env: not used.
        seed: of the order.
        name: of a class of ``torchvision.datasets``.
        root: the folder of its files.
        download: whether they may be fetched.
        arguments: further ones of its constructor. Their transforms must not be random: processors
            augment.
        validation_arguments: what differs for the ``own`` validation split; if empty, ``train`` or
            ``split``, whichever the constructor has.
        size: (H, W) to which every image is resized; None if all have the same size.
        channels: 1 for grey, 3 for RGB, None for what the files have.
        validation: ``own`` for its validation split, or test split if it has none; or as
            ``Examples`` takes it.
        split_seed, num_classes, batch_size, num_workers, device: as ``Examples`` takes them.

    Raises:
        UserError: torchvision cannot be imported or has no such dataset, or its files are missing
            or damaged.
        ValueError: it has no split of its own, and as ``Examples`` raises it.

    """
    if validation_arguments and validation != "own":
        raise ValueError(f"validation_arguments need validation=own, got validation={validation}")
    form = {"size": size, "channels": channels}
    kind = dataset_class(name)
    known = constructor_parameters(kind)
    if download and "download" not in known:
        raise ValueError(f"torchvision downloads no {name}; put its files into {root} yourself")
    common: dict[str, Any] = {"root": root} if "root" in known else {}
    common |= {"download": True} if download else {}
    if "loader" in known and callable(known["loader"].default):
        common["loader"] = read_rgb  # its own drops transparency and clips 16 bits
    split = {"train": True} if "train" in known else {"split": "train"} if "split" in known else {}
    given = {**common, **split, **arguments}
    training = TorchvisionImages(name, open_dataset(kind, given), **form)
    if validation == "own":
        choices = own_splits(name, known, validation_arguments)
        apart = TorchvisionImages(name, open_first(kind, given, choices), **form)
    else:
        apart = validation
    return Examples(
        training,
        apart,
        seed,
        split_seed=split_seed,
        num_classes=num_classes,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
    )


class TorchvisionImages:
    """Examples of a dataset of torchvision's.

    Args:
        name: of its class.
        dataset: what that class made.
        size: (H, W) or None.
        channels: 1, 3 or None.

    """

    def __init__(
        self, name: str, dataset: Any, *, size: Sequence[int] | None, channels: int | None
    ) -> None:
        self.name = f"torchvision's {name}"
        self.dataset = dataset
        self.size = size
        self.channels = channels
        self.targets = known_labels(dataset)
        classes = getattr(dataset, "classes", None)
        self.num_classes = len(classes) if classes else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        try:
            with silent_decoders():
                image, label = self.dataset[index]
                if not isinstance(image, Image.Image):
                    raise TypeError(f"its observation is a {type(image).__name__}, no PIL image")
                obs = to_tensor(image, size=self.size, channels=self.channels)
            target = torch.as_tensor(label)
            if target.ndim or target.is_floating_point():
                raise TypeError(f"its target is no class label, but {label}")
        except Exception as error:  # a decoder may raise anything for a damaged file
            what = self.name_example(index)
            raise UserError(f"{what} cannot be read: {message_of(error)}") from error
        return Example(obs, target.long())

    def name_example(self, index: int) -> str:
        for key in ("samples", "_samples", "_image_files"):
            if isinstance(files := getattr(self.dataset, key, None), list):
                return str(files[index][0] if isinstance(files[index], tuple) else files[index])
        return f"example {index} of {self.name}"


def dataset_class(name: str) -> type:
    """The class of this name in ``torchvision.datasets``.

    Raises:
        UserError: there is none, or torchvision is not installed, or was built for another torch.

    """
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except Exception as error:  # a build for another torch fails in many ways
        if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("torchvision"):
            message = "dataset=torchvision needs an extra: pip install -e '.[vision]'"
            raise UserError(message) from error
        raise UserError(
            f"dataset=torchvision needs torchvision, which cannot be imported "
            f"({message_of(error)}); "
            f"install the build that goes with torch {torch.__version__}: "
            "pip install torch torchvision, from the same index of pytorch.org"
        ) from error
    kind = getattr(datasets, name, None)
    if not isinstance(kind, type):
        raise UserError(
            f"dataset.name: torchvision has no dataset '{name}'{did_you_mean(name, dir(datasets))}"
        )
    return kind


def constructor_parameters(kind: type) -> dict[str, inspect.Parameter]:
    """The constructor's parameters by name, with those that it hands on to a base class."""
    known: dict[str, inspect.Parameter] = {}
    for part in kind.__mro__:
        if "__init__" in vars(part):
            parameters = inspect.signature(vars(part)["__init__"]).parameters
            known = {**parameters, **known}
            if all(
                parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()
            ):
                break
    return known


def own_splits(
    name: str, known: Collection[str], validation_arguments: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Arguments that may lead to a dataset's own validation split, the best choice first.

    Raises:
        ValueError: it has none.

    """
    if validation_arguments:
        return [validation_arguments]
    if "train" in known:
        return [{"train": False}]
    if "split" in known:
        return [{"split": split} for split in VALIDATION_SPLITS]
    raise ValueError(f"torchvision's {name} has no split of its own; set dataset.validation=0.1")


def open_first(kind: type, arguments: Mapping[str, Any], choices: list[Mapping[str, Any]]) -> Any:
    """The dataset with the first of ``choices`` that it accepts."""
    *others, last = choices
    for choice in others:
        try:
            return open_dataset(kind, {**arguments, **choice})
        except UserError as error:
            # torchvision's message about an unknown split, whatever the dataset.
            if "for argument split" not in str(error):
                raise
    return open_dataset(kind, {**arguments, **last})


def open_dataset(kind: type, arguments: Mapping[str, Any]) -> Any:
    """Construct a dataset.

    Raises:
        UserError: it refuses its arguments, or the files are missing or damaged.

    """
    try:
        return kind(**arguments)
    except Exception as error:  # torchvision raises several for damaged files
        given = ", ".join(f"{k}={value}" for k, value in arguments.items() if k != "loader")
        file = damaged_file(kind, str(arguments.get("root", ".")))
        reason = f"{file} is missing or damaged: {message_of(error)}" if file else message_of(error)
        raise UserError(
            f"torchvision's {kind.__name__}({given}) cannot be opened: {reason}; "
            "see dataset.root, dataset.download=true and dataset.arguments"
        ) from error


def known_labels(dataset: Any) -> Tensor | None:
    """All labels (n,), if the dataset keeps them and returns them unchanged; else None."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for key in ("targets", "labels", "_labels"):
        try:
            labels = torch.as_tensor(getattr(dataset, key))
        except (AttributeError, TypeError, ValueError, RuntimeError):
            continue
        if labels.shape == (len(dataset),) and not labels.is_floating_point():
            return labels.long()
    return None
