"""Name what is in images, with a classifier that was trained before.

Legend: B batch, C channels, (H, W) pixels, N images, K classes, D width of the features.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from visionzoo.data.images import ImageInput, open_image
from visionzoo.data.sources.base import printable
from visionzoo.data.sources.folder import list_images, not_read, warn_not_read
from visionzoo.facts import backbone_facts
from visionzoo.files import refuse_address
from visionzoo.inference.answers import Asked, Prediction, Scorer
from visionzoo.inference.device import as_input, own_precision, resolve_device
from visionzoo.inference.stream import Output, Stream, Unreadable
from visionzoo.models.bundle import load_bundle
from visionzoo.models.calibration import HOW, Calibration
from visionzoo.runs.folder import RunFolder
from visionzoo.terminal import visible_name
from visionzoo.types import Preprocess
from visionzoo.weights.local import local_source

#: One image, a folder of images (searched at any depth), or several of either.
Images = ImageInput | Iterable[ImageInput]


class Report(NamedTuple):
    """Everything that came of a call for predictions; the first two have one entry for each image."""

    names: list[str]  #: paths, or "image 3" for what has none
    predictions: list[Prediction | None]  #: None for an unreadable image
    unreadable: list[Unreadable]


class ImageLabeller:
    """What every model that names images answers. Subclasses set the attributes, and score and embed a batch."""

    labels: tuple[str, ...]
    preprocess: Preprocess
    device: torch.device
    name: str
    #: where one is set, an image whose best label has a lower probability is first called ``unknown_label``
    unknown: float | None = None
    unknown_label: str = "unknown"
    how_to_calibrate: str  #: for messages
    multi_label: bool  #: whether an image may have several labels, each scored by itself
    takes_pixels = False  #: whether the model normalises for itself, and is given uint8

    def __repr__(self) -> str:
        shown = ", ".join(self.labels[:5]) + (", ..." if len(self.labels) > 5 else "")
        parts = [
            self.name,
            f"{len(self.labels)} labels: {shown}",
            *self._about(),
            pixels_of(self.preprocess.image_size),
        ]
        return f"{type(self).__name__}({'; '.join([*parts, str(self.device)])})"

    def _about(self) -> list[str]:
        """What else :func:`repr` says."""
        return []

    def predict(
        self,
        images: Images,
        top_k: int = 5,
        batch_size: int = 32,
        on_error: Literal["raise", "skip"] = "raise",
        *,
        sets: float | None = None,
        unknown_rate: float | None = None,
    ) -> list[Any]:
        """Name the images.

        Args:
            images: one image, a folder, or a list of either.
            top_k: answers for each image; fewer where there are fewer classes.
            batch_size: images sent through the model at a time.
            on_error: what an unreadable image does: ``raise``, or ``skip``, which gives None in its place and warns.
            sets: of a calibrated model, in (0, 1): in place of ``top_k`` answers so many that they hold the right one
                for this share of images like those of the calibration, at least one each.
            unknown_rate: of a calibrated model, in (0, 1): an image that the model is so unsure of that at most this
                share of images like those of the calibration would be called so, is first called ``unknown_label``.

        Returns:
            for each image a list of (label, probability in [0, 1]), highest first. The scores of a multi-label model do
            not sum to 1.

        Raises:
            ValueError: naming an image that cannot be read, and why; for ``top_k`` below 1; and for ``sets`` or
                ``unknown_rate`` of a model that is not calibrated, or that its calibration images cannot tell.
            FileNotFoundError: for a path that does not exist, also with ``skip``.
        """
        done = self.report(images, top_k, batch_size, on_error, sets=sets, unknown_rate=unknown_rate)
        if done.unreadable:
            warnings.warn(describe_unreadable(done.unreadable, len(done.names)), stacklevel=2)
        return done.predictions

    def report(
        self,
        images: Images,
        top_k: int = 5,
        batch_size: int = 32,
        on_error: Literal["raise", "skip"] = "skip",
        *,
        sets: float | None = None,
        unknown_rate: float | None = None,
    ) -> Report:
        """What :meth:`predict` says, together with what each image is called and which ones were unreadable."""
        scorer = self._scorer()
        asked = Asked(
            top_k=top_k, sets=sets, unknown_rate=unknown_rate, unknown=self.unknown, unknown_label=self.unknown_label
        )
        asked.check(scorer, self.how_to_calibrate)
        items = expand(images)
        predictions: list[Prediction | None] = [None] * len(items)
        unreadable: list[Unreadable] = []
        for output in self._run(scorer.scores, items, batch_size, on_error):
            unreadable += output.unreadable
            if output.positions:
                for i, answer in zip(output.positions, asked.answers(scorer, output.values), strict=True):
                    predictions[i] = answer
        return Report([name_of(item, i) for i, item in enumerate(items)], predictions, unreadable)

    def calibrate(self, images: Images, labels: Sequence[str | int], batch_size: int = 32) -> Calibration:
        """Fit the temperature of the probabilities, and what ``sets`` and ``unknown_rate`` need; this object keeps it.

        Args:
            images: that the model was not trained on, like those to come; at least 20, better some hundreds.
            labels: the right one of each: its text, or its place among ``self.labels``.
            batch_size: images sent through the model at a time.

        Raises:
            ValueError: for another number of labels than images, a label that is none of the model's, too few images,
                or a model that gives each label a probability of its own; and as :meth:`predict`.
        """
        scorer = self._scorer()
        scorer.one_label_each("a calibration")
        items = expand(images)
        if len(items) != len(labels):
            raise ValueError(f"{len(labels)} labels do not fit {len(items)} images")
        known = {label: k for k, label in enumerate(scorer.labels)}
        places = [known.get(label, -1) if isinstance(label, str) else int(label) for label in labels]
        if odd := [label for label, k in zip(labels, places, strict=True) if not 0 <= k < len(known)]:
            raise ValueError(f"{odd[0]!r} is none of the labels: {', '.join(scorer.labels)[:200]}")
        logits = self._collect(scorer.logits, items, batch_size, len(known))
        return self.use_calibration(Calibration.fit(logits, torch.tensor(places)), scorer.labels)

    def use_calibration(self, calibration: Calibration, labels: tuple[str, ...]) -> Calibration:
        """Answer by a calibration that was fitted for ``labels``. Raises ValueError where they have changed since."""
        raise AssertionError(f"{type(self).__name__} must keep {calibration} of {len(labels)} labels")

    def probabilities(self, images: Images, batch_size: int = 32) -> Tensor:
        """(N, K) float32 on the CPU: softmax over the classes, or a sigmoid for each class of a multi-label model.

        Raises:
            ValueError, FileNotFoundError: as :meth:`predict`.
        """
        scorer = self._scorer()
        return self._collect(scorer.scores, images, batch_size, len(scorer.labels))

    def embed(self, images: Images, batch_size: int = 32) -> Tensor:
        """(N, D) float32 on the CPU: what is compared or read to name each image.

        Raises:
            ValueError, FileNotFoundError: as :meth:`predict`.
        """
        return self._collect(self._features, images, batch_size, self.width)

    def _scorer(self) -> Scorer:
        """What a call answers by."""
        raise AssertionError(f"{type(self).__name__} must say how it scores images")

    def _features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised images -> (B, D)."""
        raise AssertionError(f"{type(self).__name__} must embed images {tuple(images.shape)}")

    @property
    def width(self) -> int:
        """D, the width of :meth:`embed`."""
        raise AssertionError(f"{type(self).__name__} must say its width")

    def _collect(self, forward: Callable[[Tensor], Tensor], images: Images, batch_size: int, width: int) -> Tensor:
        values = [output.values for output in self._run(forward, expand(images), batch_size, "raise")]
        return torch.cat(values) if values else torch.empty(0, width)

    def _run(
        self, forward: Callable[[Tensor], Tensor], items: list[ImageInput], batch_size: int, on_error: str
    ) -> Iterable[Output]:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r} must be 'raise' or 'skip'")
        stream = Stream(forward, self.preprocess, self.device, raw=self.takes_pixels)
        outputs = stream.run(len(items), lambda i: open_image(items[i]), lambda i: name_of(items[i], i), batch_size)
        for output in outputs:
            if output.unreadable and on_error == "raise":
                raise ValueError(
                    f"{describe_unreadable(output.unreadable, len(items))}; on_error='skip' goes on without"
                )
            yield output


class ImageClassifier(ImageLabeller):
    """A trained classifier that takes images in any form and answers with labels and probabilities.

    Made by :meth:`load` or :meth:`from_model`. An image is whatever PIL can open (a path, bytes, an open file), a PIL
    image, or an array or tensor as :func:`visionzoo.data.images.open_image` takes it; a path to a folder stands for the
    images in it, sorted. The model is put in eval mode; evaluation geometry and normalisation are the ones saved with
    it. Threads may share one. Where it has a calibration, probabilities are by its temperature.
    """

    how_to_calibrate = HOW

    def __init__(
        self,
        model: nn.Module,
        labels: Sequence[str],
        preprocess: Preprocess,
        *,
        multi_label: bool = False,
        calibration: Calibration | None = None,
        device: str | torch.device | None = None,
        name: str = "classifier",
    ) -> None:
        """
        Args:
            model: a classifier of ``create_classifier``'s kind.
            labels: K class names, in the order of the logits.
            preprocess: how pixels become the model's input.
            multi_label: whether each class is scored for itself (sigmoid) rather than against the others (softmax).
            calibration: of this model on held-out images; see also :meth:`calibrate`.
            device: where the model goes; None leaves it where it is.
            name: what it is called in messages and tables.

        Raises:
            ValueError: for another number of labels than the model has classes, or another number of channels.
        """
        classes = int(model.num_classes)  # type: ignore[arg-type]
        if len(labels) != classes:
            raise ValueError(f"{len(labels)} labels do not fit a model with {classes} classes")
        channels = int(model.in_chans)  # type: ignore[arg-type]
        if channels != len(preprocess.mean):
            raise ValueError(
                f"the model takes {channels} channels, its preprocessing gives {len(preprocess.mean)}: RGB for a mean "
                "of 3 values, grey for a mean of 1"
            )
        self.model = model.eval() if device is None else model.eval().to(resolve_device(device))
        self.labels = tuple(str(label) for label in labels)
        self.preprocess = preprocess
        self.multi_label = multi_label
        self.calibration = calibration
        self.name = name
        self.device = next(model.parameters()).device

    @classmethod
    def load(
        cls, source: str | Path, device: str | torch.device | None = None, *, calibrated: bool = True
    ) -> ImageClassifier:
        """The classifier in a run folder, or of timm's pretrained ones.

        Args:
            source: a run folder, any folder with ``model.safetensors`` and ``config.json``, ``"embedded"`` for the
                digits that come with the package, or ``"timm:<name>.<tag>"``, whose weights timm keeps or downloads.
            device: None for a GPU where there is one, otherwise the CPU.
            calibrated: whether to take the calibration that a run has of its held-out images; without it probabilities
                are the plain softmax of the logits.

        Raises:
            FileNotFoundError: if there is no such folder, or no exported model in it.
            ValueError: for a model of another task, or a damaged file.
        """
        device, source = resolve_device(device), local_source(source, "classify")
        if isinstance(source, str) and source.startswith("timm:"):
            from visionzoo.inference.pretrained import load_timm

            pretrained, names = load_timm(source)
            return cls.from_model(pretrained, names, device=device, name=source)
        if not os.path.exists(source):
            _refuse_name(str(source))
        folder = RunFolder.open(source)
        model, config = load_bundle(folder.path, device=device)
        if config.task != "classify":
            raise ValueError(f"{source} holds a model of task {config.task!r}, not a classifier")
        labels = config.labels or tuple(str(k) for k in range(int(model.num_classes)))  # type: ignore[arg-type]
        return cls(
            model,
            labels,
            config.preprocess,
            multi_label=config.multi_label,
            calibration=config.calibration if calibrated else None,
            name=folder.path.resolve().name,
        )

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        labels: Sequence[str],
        *,
        multi_label: bool = False,
        device: str | torch.device | None = None,
        name: str = "classifier",
    ) -> ImageClassifier:
        """A classifier in memory, with the preprocessing that it carries; arguments as in :meth:`__init__`."""
        preprocess = model.preprocess
        assert isinstance(preprocess, Preprocess)
        return cls(model, labels, preprocess, multi_label=multi_label, device=device, name=name)

    def _scorer(self) -> Scorer:
        return Scorer(self.name, self.labels, self._logits, self.multi_label, self.calibration)

    def _logits(self, images: Tensor) -> Tensor:
        with own_precision(self.model):
            return self.model(as_input(images, self.model)).float()

    def use_calibration(self, calibration: Calibration, labels: tuple[str, ...]) -> Calibration:
        assert labels == self.labels
        self.calibration = calibration
        return calibration

    def _features(self, images: Tensor) -> Tensor:
        with own_precision(self.model):
            return self.model.embed_images(as_input(images, self.model))  # type: ignore[operator]

    def _about(self) -> list[str]:
        backbone = str(getattr(self.model, "name", type(self.model).__name__))
        return [backbone, "several labels per image"] if self.multi_label else [backbone]

    @property
    def width(self) -> int:
        """Width of :meth:`embed`."""
        return int(self.model.pooled_dim)  # type: ignore[arg-type]


def pixels_of(image_size: tuple[int, int]) -> str:
    """An input size in words."""
    return f"{image_size[0]}x{image_size[1]} pixels"


def _refuse_name(source: str) -> None:
    """A backbone's name is no classifier, though it looks like one."""
    name = source.removeprefix("timm/")
    if name != source or name in backbone_facts():
        raise ValueError(
            f"{source} is the name of a backbone, which has no classes; give a run folder, or timm:{name} for the "
            "classifier that timm publishes"
        )


def expand(images: Images) -> list[ImageInput]:
    """One image or several as a list, folders replaced by the images in them.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a folder without images, or an address of the network.
    """
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        return list(images)
    single = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | np.ndarray | Tensor | Image.Image)
    several: Iterable[Any] = [images] if single or hasattr(images, "read") else images  # type: ignore[list-item, assignment]
    items: list[ImageInput] = []
    for item in several:
        if not isinstance(item, str | os.PathLike):
            items.append(item)
        elif os.path.isdir(item):
            folder = os.fspath(item)
            names, others = list_images(folder)
            if not names:
                hint = not_read(0, others) or "no file in it has an ending that PIL can read"
                raise ValueError(f"no images in {folder}: {hint}")
            warn_not_read(folder, len(names), others)
            items += [os.path.join(folder, os.fsdecode(name)) for name in names]
        elif not os.path.lexists(item):
            refuse_address(item)
            raise FileNotFoundError(f"there is no image or folder {os.fspath(item)}")
        else:
            items.append(item)
    return items


def name_of(item: ImageInput, index: int) -> str:
    """What to call an image in messages and tables: its path, or its position."""
    return printable(os.fspath(item)) if isinstance(item, str | os.PathLike) else f"image {index}"


def describe_unreadable(unreadable: Sequence[Unreadable], total: int) -> str:
    """One line that says how many images could not be read, and which and why for the first five."""
    listed = "; ".join(visible_name(f"{u.name}: {u.reason}") for u in unreadable[:5])
    more = f"; and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
    return f"{len(unreadable)} of {total} images cannot be read: {listed}{more}"
