"""The pictures of the folder that a server was given, and of no other."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from visionzoo.data.sources.base import printable
from visionzoo.data.sources.folder import list_images
from visionzoo.files import refuse_address
from visionzoo.serve.bounds import Refused


class PictureFolder:
    """Pictures by their number. A link that leads out of the folder is as good as not there."""

    def __init__(self, path: str | Path, most_bytes: int, first: Sequence[str] = ()) -> None:
        """
        Args:
            path: the folder.
            most_bytes: of one file.
            first: the pictures to begin with, by their names in the folder or their paths; the others follow.

        Raises:
            FileNotFoundError: if there is no such folder.
            ValueError: if it holds no picture, or none of those to begin with.
        """
        refuse_address(path)
        if not os.path.isdir(path):
            raise FileNotFoundError(f"there is no folder {path}")
        self.path = Path(path)
        self.root = os.path.realpath(path)
        self._most = most_bytes
        found, _ = list_images(str(path))
        self.names = [name for name in map(os.fsdecode, found) if self._inside(name) is not None]
        if odd := [name for name in self.names if printable(name) != name]:
            warnings.warn(
                f"{len(odd)} pictures of {path} are left out, such as {printable(odd[0])}: their names are not UTF-8, "
                "which annotations are written in; rename them",
                stacklevel=2,
            )
            self.names = [name for name in self.names if name not in set(odd)]
        if not self.names:
            raise ValueError(f"no pictures in {path}")
        if first:
            self._begin_with(first)
        self._places = {os.path.join(str(path), name): i for i, name in enumerate(self.names)}

    def _begin_with(self, first: Sequence[str]) -> None:
        """Bring pictures to the front, in their order."""
        by_target = {self._inside(name): name for name in self.names}
        listed = [by_target.get(self._inside(name)) or by_target.get(os.path.realpath(name)) for name in first]
        front = list(dict.fromkeys(name for name in listed if name is not None))
        if not front:
            raise ValueError(
                f"none of the {len(first)} pictures to begin with is in {self.path}: {first[0]!r:.80} is not"
            )
        self.names = [*front, *(name for name in self.names if name not in set(front))]

    def __len__(self) -> int:
        return len(self.names)

    def place(self, path: str) -> int | None:
        """The number of a file that a search found; None for one that is not served."""
        return self._places.get(path)

    def read(self, index: int) -> bytes:
        """The bytes of a picture. Where it lies is looked at again: it may have become a link meanwhile.

        Raises:
            Refused: 404 for a number that there is not and a file that is gone, 413 for one that is too large.
        """
        if not 0 <= index < len(self.names):
            raise Refused(404, f"there is no picture {index}; the folder has {len(self.names)}")
        target = self._inside(self.names[index])
        if target is None:
            raise Refused(404, f"{self.names[index]} is not in the folder any more")
        try:
            with open(target, "rb") as file:
                data = file.read(self._most + 1)
        except OSError as error:
            raise Refused(404, f"{self.names[index]} cannot be read: {error.strerror}") from None
        if len(data) > self._most:
            raise Refused(413, f"{self.names[index]} has more than {self._most:,} bytes, the most that is taken")
        return data

    def _inside(self, name: str) -> str | None:
        """Where a file is, links followed; None where that is not in the folder, or it is no ordinary file."""
        target = os.path.realpath(os.path.join(self.root, name))
        inside = os.path.commonpath((self.root, target)) == self.root
        return target if inside and os.path.isfile(target) else None
