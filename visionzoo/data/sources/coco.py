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
from visionzoo.data.sources.objects import ObjectMasks, ObjectSource, RunObjects
from visionzoo.data.sources.paths import found_name
from visionzoo.data.sources.rle import read_segmentation
from visionzoo.text import check_text, nfc, parse_json, read_text


class CocoSource(FilesSource, ObjectSource):
    """Images of one annotation file."""

    def __init__(self, folders: Sequence[str], record: dict[str, Any], where: str) -> None:
        """
        Args:
            folders: where the images may be; the first that holds one of the first images is taken.
            record: the parsed file.
            where: its name, for messages.

        Raises:
            FileNotFoundError: if none of the first images is in any of the folders.
            ValueError: for a file without ``images`` and ``annotations``, or an entry that is not as COCO has it; the
                message has its id.
        """
        images, annotations = record.get("images"), record.get("annotations")
        if not isinstance(images, list) or not isinstance(annotations, list) or not images:
            raise ValueError(f"{where} has no lists of images and annotations; is it COCO's instance JSON?")
        #: what was passed over, in words
        self.problems: list[str] = []
        try:
            names = {_key(c["id"]): check_text(nfc(str(c["name"])), where) for c in record.get("categories") or []}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{where}: a category needs an id and a name: {_words(error)}") from error
        entries = self._images(images, where)
        root = _root(folders, [name for _, name, _ in entries[:20]], where)
        super().__init__(root, [found_name(root, name) for _, name, _ in entries])
        self._sizes = np.array([size for _, _, size in entries], dtype=np.int64)
        of_image = self._of_image([key for key, _, _ in entries], annotations, names, where)
        self.categories = tuple(names.values())
        self.object_counts = np.array([sum(not e[1] for e in several) for several in of_image])
        try:
            self._annotations = PackedTexts([json.dumps(several)] for several in of_image)
        except RecursionError as error:
            raise ValueError(f"{where} is nested too deeply to be read") from error

    def _images(self, images: list[Any], where: str) -> list[tuple[str, str, tuple[int, int]]]:
        """(id, file name, (H, W)) of every image; those of one id and several files are left out."""
        entries: dict[str, tuple[str, str, tuple[int, int]]] = {}
        doubtful: set[str] = set()
        for k, image in enumerate(images):
            try:
                key, size = _key(image["id"]), (int(image["height"]), int(image["width"]))
                entry = key, str(image["file_name"]), size
                if max(map(abs, size)) >= 1 << 31:
                    raise ValueError(f"its size is {size}")
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise _not_cocos(where, "image", image, k, error) from error
            if entries.setdefault(key, entry) != entry and key not in doubtful:
                doubtful.add(key)
                self.problems.append(
                    f"{entries[key][1]} and {entry[1]} share the image id {key}, and which annotation is whose cannot "
                    "be told; both are left out"
                )
        kept = [entry for key, entry in entries.items() if key not in doubtful]
        if not kept:
            raise ValueError(f"{where} has no image left: {self.problems[0]}")
        self._doubtful = frozenset(doubtful)
        return kept

    def _of_image(self, keys: list[str], annotations: list[Any], names: dict[str, str], where: str) -> list[list[Any]]:
        """(name, is crowd, segmentation) of every object, for each image."""
        found: dict[str, list[Any]] = {key: [] for key in keys}
        orphans: list[str] = []
        maskless: list[str] = []
        for k, a in enumerate(annotations):
            try:
                key, crowd = _key(a["image_id"]), _flag(a.get("iscrowd"))
                category = a.get("category_id")
                name = "" if category is None else names.get(_key(category), "")
                segmentation = a.get("segmentation")
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise _not_cocos(where, "annotation", a, k, error) from error
            if key not in found:
                if key not in self._doubtful:
                    orphans.append(_named("annotation", a, k))
            elif not crowd and not segmentation:
                maskless.append(_named("annotation", a, k))
            else:
                found[key].append((name, crowd, None if crowd else segmentation))
        for several, words in (
            (orphans, "are of images that it does not list"),
            (maskless, "have no segmentation (a box alone is no mask) and are left out"),
        ):
            if several:
                self.problems.append(f"{len(several)} annotations {words}, the first is {several[0]}")
        return list(found.values())

    def objects(self, i: int) -> ObjectMasks:
        entries = json.loads(self._annotations[i][0])  # written above, so no deeper than this can read
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

    def objects(self, i: int) -> ObjectMasks:
        path = os.path.splitext(os.path.join(self.root, self.paths[i]))[0] + ".json"
        try:
            record = parse_json(read_text(path), "the file")
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
    record = parse_json(read_text(path), path)
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__}; COCO's instance files hold an object")
    return CocoSource([image_root] if image_root is not None else _image_folders(path), record, path)


def _root(folders: Sequence[str], names: Sequence[str], where: str) -> str:
    for folder in folders:
        if any(os.path.lexists(os.path.join(os.fsencode(folder), found_name(folder, name))) for name in names):
            return folder
    raise FileNotFoundError(f"{where}: {names[0]} is in none of {', '.join(folders)}; name it with --data.image_root")


def _key(value: Any) -> str:
    """An id as a word: programs write 7, 7.0 and "7" for one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or value == "":
        raise TypeError(f"an id is {value!r:.40}, need a number or text")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _flag(value: Any) -> bool:
    """``iscrowd``: 0 or 1, also as text; nothing is 0."""
    if value is None or value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("0", "1", "false", "true", ""):
        return value.strip().lower() in ("1", "true")
    raise ValueError(f"iscrowd is {value!r:.40}, need 0 or 1")


def _named(kind: str, entry: Any, position: int) -> str:
    """``annotation 17``, or where it stands in its list if it has no id."""
    if isinstance(entry, dict) and isinstance(entry.get("id"), int | float | str):
        return f"{kind} {entry['id']!a:.40}"
    return f"{kind} at place {position} (without an id)"


def _not_cocos(where: str, kind: str, entry: Any, position: int, error: Exception) -> ValueError:
    return ValueError(f"{where}: {_named(kind, entry, position)} is not as COCO has it: {_words(error)}")


def _words(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}"
    return str(error)


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
