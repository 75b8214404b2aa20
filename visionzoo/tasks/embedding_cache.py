"""What a frozen encoder makes of images, computed once and kept on the disk.

Legend: B images, C channels, (H, W) pixels.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from visionzoo.files import atomic_path


class EmbeddingCache:
    """Feature maps by the pixels they were made of, one file for each image.

    The name of a file holds the encoder and the image's bytes, so a cache can be shared by runs and data sets, and is
    never out of date. A file that is damaged is made again; when the disk is full, a run goes on without new files.

    Args:
        folder: where the files are.
        encoder: identifies the encoder and everything else that its output depends on, from
            :func:`visionzoo.weights.fingerprint.model_fingerprint`.
    """

    def __init__(self, folder: Path, encoder: str) -> None:
        self.folder = folder / encoder
        self.hits = self.misses = 0
        self._full = False

    def get(self, image: Tensor, compute: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """The feature maps of an image, each (1, ...).

        Args:
            image: (1, C, H, W) uint8, as it leaves the loader.
            compute: makes the maps of such an image; called if they are not there.
        """
        file = self._file(image)
        maps = self._read(file)
        if maps is not None:
            self.hits += 1
            return [x.to(image.device) for x in maps]
        self.misses += 1
        made = [x.detach() for x in compute(image)]
        self._write(file, made)
        return made

    def _file(self, image: Tensor) -> Path:
        digest = hashlib.blake2b(image.cpu().contiguous().numpy().tobytes(), digest_size=16)
        digest.update(repr(tuple(image.shape)).encode())
        return self.folder / f"{digest.hexdigest()}.safetensors"

    def _read(self, file: Path) -> list[Tensor] | None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not file.is_file():
            return None
        try:
            found = load_file(file)
        except SafetensorError as error:
            warnings.warn(f"{file} is damaged ({error}) and is made again", stacklevel=2)
            return None
        return [found[str(m)] for m in range(len(found))]

    def _write(self, file: Path, maps: list[Tensor]) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if self._full:
            return
        try:
            with atomic_path(file) as temporary:
                save_file({str(m): x.cpu().contiguous() for m, x in enumerate(maps)}, str(temporary))
        except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
            self._full = True
            warnings.warn(f"no more embeddings are kept in {self.folder} ({error}); training goes on", stacklevel=2)
