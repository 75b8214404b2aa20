"""torchvision's named sets, as ``torchvision:CIFAR10``. They are downloaded only when that is asked for."""

from __future__ import annotations

import difflib
import os
from typing import Any

import numpy as np

from visionzoo.cache import cache_folder
from visionzoo.data.images import ImageInput, UnreadableImage
from visionzoo.data.sources.base import NO_LABEL, Source

_BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
_BY_SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}
_WITH_VAL = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}

#: Keyword arguments of each split of each classification set.
SETS: dict[str, dict[str, dict[str, Any]]] = {
    "CIFAR10": _BY_FLAG,
    "CIFAR100": _BY_FLAG,
    "MNIST": _BY_FLAG,
    "FashionMNIST": _BY_FLAG,
    "KMNIST": _BY_FLAG,
    "USPS": _BY_FLAG,
    "SVHN": _BY_SPLIT,
    "STL10": _BY_SPLIT,
    "Food101": _BY_SPLIT,
    "GTSRB": _BY_SPLIT,
    "StanfordCars": _BY_SPLIT,
    "RenderedSST2": _WITH_VAL,
    "Flowers102": _WITH_VAL,
    "DTD": _WITH_VAL,
    "FGVCAircraft": _WITH_VAL,
    "Country211": {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "EuroSAT": {"train": {}},
    "Caltech101": {"train": {}},
    "Caltech256": {"train": {}},
}


class TorchvisionSource(Source):
    """One split of a torchvision data set."""

    def __init__(self, name: str, dataset: Any) -> None:
        """
        Args:
            name: of the set and split, for sample ids.
            dataset: an object whose items are (PIL image, label) pairs and which has its labels as a list.
        """
        self.name = name
        self.dataset = dataset
        labels = next(
            (getattr(dataset, key) for key in ("targets", "_labels", "labels", "y") if hasattr(dataset, key)), None
        )
        if labels is None:
            labels = [label for _, label in dataset._samples]
        self.targets = np.asarray(labels, dtype=np.int64).reshape(-1)
        count = int(self.targets.max(initial=NO_LABEL)) + 1
        known = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or range(count)
        self.classes = tuple(" ".join(c) if isinstance(c, tuple) else str(c) for c in known)

    def sample_id(self, i: int) -> str:
        """The name of the set and the position."""
        return f"{self.name}:{i}"

    def raw(self, i: int) -> ImageInput:
        """torchvision's image. Raises UnreadableImage."""
        try:
            image: ImageInput = self.dataset[i][0]
        except (OSError, ValueError, SyntaxError, RuntimeError) as error:
            raise UnreadableImage(f"torchvision: {error}") from error
        return image


def open_torchvision(name: str, *, root: str | None = None, download: bool = False) -> dict[str, Source]:
    """The splits of a named set.

    Args:
        name: torchvision's class name, for example "CIFAR10".
        root: folder that holds the sets; None for the user's cache.
        download: fetch the set if it is not there.

    Raises:
        ValueError: for an unknown name; the message suggests near ones.
        FileNotFoundError: if the set is not there and ``download`` is False.
    """
    if name not in SETS:
        near = difflib.get_close_matches(name.lower(), {s.lower(): s for s in SETS}, n=3, cutoff=0.5)
        hint = [s for s in SETS if s.lower() in near] or list(SETS)
        raise ValueError(f"unknown torchvision set {name!r}; did you mean {', '.join(hint)}?")
    import filelock
    import torchvision

    folder = root or str(cache_folder("torchvision"))
    os.makedirs(folder, exist_ok=True)
    build = getattr(torchvision.datasets, name)
    # Several ranks may ask at once; the first one downloads.
    with filelock.FileLock(os.path.join(folder, f".{name}.lock")):
        try:
            return {
                split: TorchvisionSource(f"torchvision:{name}/{split}", build(folder, download=download, **arguments))
                for split, arguments in SETS[name].items()
            }
        except (RuntimeError, FileNotFoundError) as error:
            if download:
                raise
            raise FileNotFoundError(
                f"torchvision:{name} is not in {folder}; --data.download true fetches it, "
                "--data.root names another folder"
            ) from error
