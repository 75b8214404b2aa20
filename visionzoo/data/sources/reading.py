"""What a reader of data is, and the options of reading each kind of data. The command line reads these classes."""

# No "from __future__ import annotations": jsonargparse does not look up names of types in the modules of all bases.

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

#: labelled images, images alone, images with captions, images with the masks of objects
Kind = Literal["labels", "images", "captions", "objects"]


class Reader(NamedTuple):
    """One way that data can lie, and how they are read from there. ``options`` are those of the kind of data."""

    name: str
    recognises: Callable[[str, Any], bool]  #: (path, options) -> whether this reader reads it
    #: (path, options) -> :class:`Splits`; or sources by split, ``{"train": ..., "val": ...}``; or one, all train
    read: Callable[[str, Any], Any]
    #: (path, options) -> whether what lies there was made for this kind of data; None asks ``recognises``
    made_for: Callable[[str, Any], bool] | None = None


class Options:
    """Frozen dataclasses of options that are checked at birth. Several of them make the options of a data module."""

    def __post_init__(self) -> None:
        """Raise ValueError for an option out of range. A subclass with something to check calls this first."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions(Options):
    """What reading data of any kind takes.

    Args:
        seed: of the order, the augmentation, the hold-out and the label budget.
    """

    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ImageReading(ReadOptions):
    """Images alone.

    Args:
        image_column: column of images or file names in tables. None for the usual names.
        root: folder of torchvision's sets. None for the user's cache.
        download: let torchvision download a set that is not there.
    """

    image_column: str | None = None
    root: str | None = None
    download: bool = False


@dataclass(frozen=True, kw_only=True)
class LabelReading(ImageReading):
    """Labelled images.

    Args:
        classes: class names in the order the model has them. None for the data's own order.
        label_column: column of labels in tables. None for the usual names.
    """

    classes: list[str] | None = None
    label_column: str | None = None


@dataclass(frozen=True, kw_only=True)
class CaptionReading(ReadOptions):
    """Captioned images.

    Args:
        image_column: column of file names in manifests. None for the usual names.
        caption_column: column of captions in manifests, or key of the captions in shards' JSON. None for the usual
            names, and the ``.txt`` of shards.
        templates: captions of a class name, such as ``a photo of a {}.``; one is drawn each time. Or the name of
            a set of them, as :class:`visionzoo.ZeroShotClassifier` takes it: ``imagenet``.
        holdout: of ``shapes``: combinations of colour and kind that are never trained on and make up the
            validation images: ``red circle, blue star``, or ``diagonal`` for one kind of each colour.
    """

    image_column: str | None = None
    caption_column: str | None = None
    templates: list[str] | str | None = None
    holdout: str | None = None


@dataclass(frozen=True, kw_only=True)
class ObjectReading(ReadOptions):
    """Images with masks.

    Args:
        image_root: folder of the images of COCO files, where they do not lie beside them as COCO has it.
        object_name: what the objects of label maps are, for text prompts, such as ``nucleus``.
        void: the value of label maps that is no object, neither learned from nor scored, such as VOC's 255.
        shapes_size: pixels per edge of ``shapes``.
    """

    image_root: str | None = None
    object_name: str = ""
    void: int | None = None
    shapes_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.void is not None and not 0 < self.void < 2**31:
            raise ValueError(f"void={self.void} must be a value of the label maps above 0, such as 255")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError for a value outside low..high."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value} must be in {low}..{high}")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises ValueError for a word that is none of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(allowed)}")
