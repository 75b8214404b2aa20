"""What a person draws, kept as COCO's instance JSON, which ``train.py segment fit --data.path`` reads."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from visionzoo.data.images import UnreadableImage
from visionzoo.data.sources.rle import RLE, read_segmentation
from visionzoo.files import write_json
from visionzoo.serve.bounds import Refused
from visionzoo.text import parse_json, read_text

FILE = "instances_train.json"
#: Stands in the file: one without it is somebody else's, and is not written to.
MARK = "annotated with visionzoo demo"


class DrawnObject(NamedTuple):
    """One object of a picture."""

    name: str
    runs: RLE

    @classmethod
    def read(cls, name: str, segmentation: Any, size: tuple[int, int]) -> DrawnObject:
        """Raises ValueError for a segmentation that is none of a picture of ``size`` (height, width)."""
        try:
            return cls(name.strip() or "object", read_segmentation(segmentation, *size))
        except UnreadableImage as error:
            raise ValueError(f"the object {name!r:.60}: {error.reason}") from None

    def to_dict(self) -> dict[str, Any]:
        """JSON types, for the page."""
        return {"name": self.name, "segmentation": self.runs.uncompressed()}


class DrawnPicture(NamedTuple):
    """A picture with its objects."""

    file_name: str
    size: tuple[int, int]  #: (height, width)
    objects: tuple[DrawnObject, ...]


def as_coco(pictures: Sequence[DrawnPicture]) -> dict[str, Any]:
    """COCO's instance JSON, masks as uncompressed run lengths; a category for each name, in order of appearance."""
    names = list(dict.fromkeys(o.name for picture in pictures for o in picture.objects))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, picture in enumerate(pictures, 1):
        height, width = picture.size
        images.append({"id": i, "file_name": picture.file_name, "width": width, "height": height})
        for drawn in picture.objects:
            x0, y0, x1, y1 = drawn.runs.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": names.index(drawn.name) + 1,
                    "segmentation": drawn.runs.uncompressed(),
                    "area": drawn.runs.area,
                    "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1],
                    "iscrowd": 0,
                }
            )
    return {
        "info": {"description": MARK},
        "images": images,
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": annotations,
    }


class Annotations:
    """The objects of all pictures of a folder, written whole after every change. Threads may share one."""

    def __init__(self, path: str | Path) -> None:
        """
        Args:
            path: the file; what an earlier time has drawn is in it.

        Raises:
            ValueError: for a file that was not written here: nothing of anybody else's is overwritten.
        """
        self.path = Path(path)
        self._lock = threading.Lock()
        self._pictures: dict[str, DrawnPicture] = {}
        if self.path.exists():
            record = parse_json(read_text(str(self.path)), str(self.path))
            described = record.get("info") if isinstance(record, dict) else None
            if not isinstance(described, dict) or described.get("description") != MARK:
                raise ValueError(f"{self.path} was not drawn here, and is left as it is; name another file with --out")
            self._pictures = _read(record, str(self.path))

    def objects(self, file_name: str, size: tuple[int, int]) -> list[DrawnObject]:
        """What was drawn in a picture; nothing where it has another size now."""
        with self._lock:
            found = self._pictures.get(file_name)
        return list(found.objects) if found is not None and found.size == size else []

    def revision(self, file_name: str) -> str:
        """Changes with what was drawn in a picture, by whomever."""
        with self._lock:
            return self._revision(file_name)

    def _revision(self, file_name: str) -> str:
        found = self._pictures.get(file_name)
        drawn = [one.to_dict() for one in found.objects] if found is not None else []
        return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16]

    def counts(self) -> dict[str, int]:
        """Objects of each picture that has any."""
        with self._lock:
            return {name: len(picture.objects) for name, picture in self._pictures.items()}

    def save(self, picture: DrawnPicture, revision: str | None = None) -> str:
        """Put the objects of one picture in the place of those it had, on the disk too; without objects it is left out.

        Args:
            picture: with its objects.
            revision: that the objects were made of; None to write whatever is there.

        Returns:
            the new revision.

        Raises:
            OSError: where the file cannot be written; it is as it was.
            Refused: 409 where the picture has another revision meanwhile.
        """
        with self._lock:
            if revision is not None and revision != self._revision(picture.file_name):
                raise Refused(409, f"{picture.file_name} was changed in another window meanwhile; open it again")
            changed = {**self._pictures, picture.file_name: picture}
            if not picture.objects:
                del changed[picture.file_name]
            write_json(self.path, as_coco(sorted(changed.values(), key=lambda p: p.file_name)))
            self._pictures = changed
            return self._revision(picture.file_name)


def _read(record: dict[str, Any], where: str) -> dict[str, DrawnPicture]:
    try:
        names = {c["id"]: c["name"] for c in record["categories"]}
        images = {i["id"]: (i["file_name"], (i["height"], i["width"])) for i in record["images"]}
        drawn: dict[int, list[DrawnObject]] = {key: [] for key in images}
        for a in record["annotations"]:
            size = images[a["image_id"]][1]
            drawn[a["image_id"]].append(DrawnObject.read(names[a["category_id"]], a["segmentation"], size))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is damaged ({type(error).__name__}: {error}); move it away to begin anew") from error
    return {name: DrawnPicture(name, size, tuple(drawn[key])) for key, (name, size) in images.items()}
