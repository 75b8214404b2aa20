"""COCO's instance annotations, and SA-1B's, which are one file per image.

Annotations are kept as text per image and parsed by the worker that reads it: as Python objects, those of COCO would
take gigabytes in every process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from visionzoo.data.images import UnreadableImage
from visionzoo.data.sources.base import FilesSource
from visionzoo.data.sources.captions import PackedTexts
from visionzoo.data.sources.objects import Objects, ObjectSource, RunObjects
from visionzoo.data.sources.runs import read_segmentation


class CocoSource(FilesSource, ObjectSource):
    """Images of one annotation file."""

    def __init__(self, root: str, record: dict[str, Any], where: str) -> None:
        """
        Args:
            root: folder that the file names are relative to.
            record: the parsed file.
            where: its name, for messages.

        Raises:
            ValueError: for a file without ``images`` and ``annotations``, or entries without their keys.
        """
        images, annotations = record.get("images"), record.get("annotations")
        if not isinstance(images, list) or not isinstance(annotations, list) or not images:
            raise ValueError(f"{where} has no lists of images and annotations; is it COCO's instance JSON?")
        try:
            names = {c["id"]: str(c["name"]) for c in record.get("categories") or []}
            super().__init__(root, [os.fsencode(image["file_name"]) for image in images])
            self._sizes = np.array([(image["height"], image["width"]) for image in images], dtype=np.int64)
            of_image: dict[Any, list[Any]] = {image["id"]: [] for image in images}
            #: annotations of images that the file does not list
            self.orphans = 0
            for a in annotations:
                if a["image_id"] not in of_image:
                    self.orphans += 1
                    continue
                crowd = bool(a.get("iscrowd"))
                entry = (names.get(a.get("category_id"), ""), crowd, None if crowd else a["segmentation"])
                of_image[a["image_id"]].append(entry)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{where}: an entry is not as COCO has it, {type(error).__name__}: {error}") from error
        self.categories = tuple(names.values())
        self.object_counts = np.array([sum(not e[1] for e in of_image[image["id"]]) for image in images])
        self._annotations = PackedTexts([json.dumps(of_image[image["id"]])] for image in images)

    def objects(self, i: int) -> Objects:
        entries = json.loads(self._annotations[i][0])
        size = int(self._sizes[i, 0]), int(self._sizes[i, 1])
        kept = [(name, segmentation) for name, crowd, segmentation in entries if not crowd]
        runs = [read_segmentation(segmentation, *size) for _, segmentation in kept]
        return RunObjects(runs, [name for name, _ in kept], size, crowds=len(entries) - len(kept))

    def stable_ids(self) -> Iterable[str]:
        yield from super().stable_ids()
        yield self._annotations.digest()


class SegmentAnythingSource(FilesSource, ObjectSource):
    """SA-1B: beside every ``sa_1.jpg`` an ``sa_1.json`` with its masks. Objects have no names."""

    def __init__(self, root: str, names: Sequence[bytes]) -> None:
        """``names`` are image files relative to ``root``."""
        super().__init__(root, names)

    def objects(self, i: int) -> Objects:
        path = os.path.splitext(os.path.join(self.root, self.paths[i]))[0] + ".json"
        try:
            with open(path, encoding="utf-8") as file:
                record = json.load(file)
            size = int(record["image"]["height"]), int(record["image"]["width"])
            segmentations = [annotation["segmentation"] for annotation in record["annotations"]]
        except OSError as error:
            raise UnreadableImage(f"its annotations: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UnreadableImage(f"its annotations: {type(error).__name__}: {error}") from error
        runs = [read_segmentation(segmentation, *size) for segmentation in segmentations]
        return RunObjects(runs, [""] * len(runs), size)


def read_coco(path: str, image_root: str | None = None) -> CocoSource:
    """Open an instance file.

    Args:
        path: the JSON file.
        image_root: folder of the images; None looks beside the file for a folder named as the split, as COCO has it.

    Raises:
        FileNotFoundError: if none of the first images is where it should be; the message lists the folders tried.
        ValueError: for a file that is not COCO's.
    """
    with open(path, encoding="utf-8") as file:
        try:
            record = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__}; COCO's instance files hold an object")
    folders = [image_root] if image_root is not None else _image_folders(path)
    source = CocoSource(folders[0], record, path)
    first = [source.paths[i] for i in range(min(len(source), 20))]
    for folder in folders:
        if any(os.path.exists(os.path.join(folder, name)) for name in first):
            source.root = folder
            return source
    raise FileNotFoundError(f"{path}: {first[0]} is in none of {', '.join(folders)}; name it with --data.image_root")


def _image_folders(path: str) -> list[str]:
    """Where images of ``instances_train2017.json`` may be."""
    here = os.path.dirname(os.path.abspath(path))
    split = split_of_file(os.path.basename(path))
    roots = [here, os.path.dirname(here)] if os.path.basename(here) == "annotations" else [here]
    found = [os.path.join(root, *parts) for root in roots for parts in ((split,), ("images", split), ("images",), ())]
    return [folder for folder in found if os.path.isdir(folder)]


def split_of_file(name: str) -> str:
    """``train2017`` of ``instances_train2017.json``."""
    return os.path.splitext(name)[0].removeprefix("instances_")
