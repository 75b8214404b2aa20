"""A model on disk: its weights and what is needed to build and feed it, side by side in one folder."""

from __future__ import annotations

import functools
import importlib
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionzoo.files import refuse_address, write_json
from visionzoo.models.calibration import Calibration
from visionzoo.models.carried import carry, placed
from visionzoo.models.config_check import Built, build_checked, check_architecture, check_most
from visionzoo.plain import check_types, shown
from visionzoo.plugins import remembered, require
from visionzoo.types import Preprocess
from visionzoo.weights import SCHEMA_VERSION, load_weights, write_safetensors
from visionzoo.weights.preprocessing import read_json

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

#: task -> (module, function), or a function, that rebuilds the network from ``ModelConfig.architecture``.
BUILDERS: dict[str, tuple[str, str] | Callable[..., nn.Module]] = {
    "classify": ("visionzoo.models.classifier", "create_classifier"),
    "mae": ("visionzoo.models.mae", "create_mae"),
    "clip": ("visionzoo.models.clip.create", "create_clip"),
    "simmim": ("visionzoo.models.simmim", "create_simmim"),
    "segment": ("visionzoo.models.sam.build", "create_sam"),
    "ssl": ("visionzoo.models.ssl", "create_ssl"),
}


def register_builder(task: str, builder: Callable[..., nn.Module]) -> None:
    """Say what rebuilds the network of exported models of a task.

    Args:
        task: what ``ModelConfig.task`` says.
        builder: takes ``ModelConfig.architecture`` as keyword arguments, all annotated: the values come out of a file
            and are checked against the annotations.

    Raises:
        ValueError: if the task has a builder already.
    """
    if task in BUILDERS:
        raise ValueError(f"the task {task!r} has a builder already; choose another name")
    BUILDERS[task] = builder


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything about a model that its weights do not say."""

    task: str  #: a key of ``BUILDERS``
    architecture: dict[str, Any]  #: keyword arguments of the builder, JSON types
    preprocess: Preprocess
    labels: tuple[str, ...] = ()  #: class names in the order of the logits
    multi_label: bool = False
    #: for a model that takes names as prompts: ``model`` whose text tower read them in training, and ``template``
    text_prompts: dict[str, str] | None = None
    calibration: Calibration | None = None  #: of a classifier of one label an image that was held against some
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_dict` reads them."""
        values = {**asdict(self), "preprocess": self.preprocess.to_dict(), "labels": list(self.labels)}
        if self.calibration is None:
            del values["calibration"]  # versions before it read the file too
            return values
        return {**values, "calibration": self.calibration.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str = "the configuration") -> ModelConfig:
        """The inverse of :meth:`to_dict`. Values may come from anywhere and are checked; nothing is opened for them,
        and of the modules in ``imports`` only installed extensions are imported (see :mod:`visionzoo.plugins`).

        Raises:
            ValueError: for a module that the user has to import first; for a file that is none of ours, of a newer
                version of visionzoo, or with a value that is unknown, of another type, not finite or too large; and for
                one that names weights elsewhere.
        """
        known = {*(f.name for f in fields(cls)), "imports"}
        values = dict(values)
        missing = {"task", "architecture", "preprocess"} - set(values)
        if missing:
            raise ValueError(f"{origin} is not a visionzoo model configuration: it lacks {', '.join(sorted(missing))}")
        hints = {**typing.get_type_hints(cls), "preprocess": dict[str, Any], "imports": tuple[str, ...]}
        hints["calibration"] = dict[str, Any] | None
        version = values.get("schema_version", SCHEMA_VERSION)
        check_types({"schema_version": version}, hints, f"{origin}: ")
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"{origin} has schema_version {version}, this visionzoo reads up to {SCHEMA_VERSION}; update visionzoo"
            )
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{origin} has unknown keys {', '.join(unknown)}")
        check_types(values, hints, f"{origin}: ")
        require(values.pop("imports", ()), origin)
        if values["task"] not in BUILDERS:
            raise ValueError(f"{origin} is of task {shown(values['task'])}; known tasks are {', '.join(BUILDERS)}")
        check_architecture(values["architecture"], _builder(values["task"]), origin)
        if (name := values["architecture"].get("name")) is not None:
            from visionzoo.models.clip.config import named_config

            named_config(name)  # the builder would also take a folder
        check_most(values["preprocess"], f"{origin}: preprocess.")
        try:
            values["preprocess"] = Preprocess.from_dict(values["preprocess"])
            if values.get("calibration") is not None:
                values["calibration"] = Calibration.from_dict(values["calibration"])
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from None
        return cls(**{**values, "labels": tuple(values.get("labels", ()))})


def _builder(task: str) -> Callable[..., nn.Module]:
    builder = BUILDERS[task]
    return builder if callable(builder) else getattr(importlib.import_module(builder[0]), builder[1])


def save_bundle(
    model: nn.Module, config: ModelConfig, folder: str | Path, *, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Write ``model.safetensors`` and ``config.json`` into ``folder``, each all or nothing, and beside them a tokenizer
    that is not CLIP's own.

    Args:
        model: the network.
        config: what rebuilds it.
        folder: made if it is not there.
        state_dict: the weights, where those in ``model`` are only a part (FSDP).

    Raises:
        OSError: for a full disk or a folder that cannot be written; files that were there stay as they were.
    """
    write_bundle(model.state_dict() if state_dict is None else state_dict, config, folder)


def write_bundle(weights: Mapping[str, Tensor], config: ModelConfig, folder: str | Path) -> None:
    """:func:`save_bundle` of weights alone."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = replace(config, architecture=carry(config.architecture, folder))
    write_safetensors(weights, folder / WEIGHTS_FILE)
    imports = {"imports": names} if (names := remembered()) else {}
    write_json(folder / CONFIG_FILE, {**config.to_dict(), **imports})


def write_calibration(folder: str | Path, calibration: Calibration) -> None:
    """Put a calibration into the ``config.json`` of a folder, in place of any that was there; all or nothing.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_config`.
        OSError: for a full disk or a folder that cannot be written; the file stays as it was.
    """
    read_config(folder)
    path = Path(folder) / CONFIG_FILE
    write_json(path, {**read_json(path), "calibration": calibration.to_dict()})


def read_config(source: str | Path) -> ModelConfig:
    """The configuration of the model in a folder.

    Raises:
        FileNotFoundError: if there is no such folder, or no exported model in it.
        ValueError: for a damaged or foreign file.
    """
    folder = Path(source)
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        refuse_address(source)
        raise FileNotFoundError(f"there is no folder {folder}; give a run folder or a folder with {CONFIG_FILE}")
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {CONFIG_FILE}: the run has not exported a model yet, or this is another kind of folder"
        )
    config = ModelConfig.from_dict(read_json(path), origin=str(path))
    return replace(config, architecture=placed(config.architecture, folder))


def load_bundle(source: str | Path, device: str | torch.device | None = None) -> tuple[nn.Module, ModelConfig]:
    """Rebuild a model from a run folder, or any folder with ``model.safetensors`` and ``config.json``, in eval mode.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_config` and :func:`visionzoo.load_weights` say; and for a
            configuration that does not fit the weights.
    """
    config = read_config(source)
    model = filled(functools.partial(_builder(config.task), **config.architecture), config, Path(source))
    return model.to(device or "cpu"), config


def filled(build: Callable[[], Built], config: ModelConfig, folder: Path) -> Built:
    """What ``build`` makes, with the weights in a folder, in eval mode; images as its configuration says, of that size.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_bundle`.
    """
    model = build_checked(build, folder / WEIGHTS_FILE, str(folder / CONFIG_FILE))
    load_weights(model, folder / WEIGHTS_FILE, reset_head=False)
    model.preprocess = config.preprocess  # type: ignore[assignment]
    return model.eval()
