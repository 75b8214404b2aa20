"""What a frozen encoder makes of images, computed once and kept on the disk.

Legend: B images, C channels, (H, W) pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from visionzoo.files import atomic_path


class EmbeddingCache:
    """Feature maps by the pixels they were made of, one file for each image.

    The name of a file holds the encoder's weights and the image's bytes, so a cache can be shared by runs and data
    sets, and is never out of date.

    Args:
        folder: where the files are.
        encoder: identifies the encoder and its precision, see :func:`visionzoo.weights.fingerprint.weights_hash`.
    """

    def __init__(self, folder: Path, encoder: str) -> None:
        self.folder = folder / encoder
        self.hits = self.misses = 0

    def get(self, images: Tensor, compute: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """The feature maps of a batch, each (B, ...).

        Args:
            images: (B, C, H, W) uint8, as they leave the loader.
            compute: images of that kind -> maps; called for those that are not there, all at once.

        Raises:
            OSError: for a full disk.
        """
        from safetensors.torch import load_file, save_file

        files = [self._file(image) for image in images]
        found = {i: load_file(f) for i, f in enumerate(files) if f.is_file()}
        missing = [i for i in range(len(files)) if i not in found]
        self.hits, self.misses = self.hits + len(found), self.misses + len(missing)
        if missing:
            made = compute(images[missing])
            for row, i in enumerate(missing):
                found[i] = {str(m): x[row].detach().cpu().contiguous() for m, x in enumerate(made)}
                with atomic_path(files[i]) as temporary:
                    save_file(found[i], str(temporary))
        maps = range(len(found[0]))
        return [torch.stack([found[i][str(m)] for i in range(len(files))]).to(images.device) for m in maps]

    def _file(self, image: Tensor) -> Path:
        digest = hashlib.blake2b(image.cpu().contiguous().numpy().tobytes(), digest_size=16)
        digest.update(repr(tuple(image.shape)).encode())
        return self.folder / f"{digest.hexdigest()}.safetensors"
