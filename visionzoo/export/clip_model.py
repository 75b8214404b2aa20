"""An exported CLIP with what a search and labels that are typed in ask of one.

Legend: B batch, C channels, (H, W) pixels, L context length, E embedding.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from visionzoo.export.folder import checksum, read_spec
from visionzoo.export.predictors import ExportedTowers, ExportedZeroShot
from visionzoo.models.carried import placed
from visionzoo.models.clip.tokenizer import Tokenizer, open_tokenizer
from visionzoo.types import Preprocess


class _ImageGraph(nn.Module):
    """Stands for the image tower. Its buffer is the checksum of the graph: what is kept of its answers goes by that."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.register_buffer("graph", torch.frombuffer(bytearray.fromhex(checksum(path)), dtype=torch.uint8))
        self.trunk = SimpleNamespace(capabilities=frozenset())  # attention does not leave a graph


class ExportedClip(nn.Module):
    """Pictures, and texts where the text tower was exported, to embeddings of length one, by ONNX Runtime."""

    takes_pixels = True

    def __init__(self, folder: str | Path, found: ExportedTowers | ExportedZeroShot) -> None:
        """
        Args:
            folder: that ``visionzoo export`` wrote.
            found: what :func:`visionzoo.export.predictors.load_exported` made of it.

        Raises:
            ValueError: for two towers of an earlier version, whose folder does not say how they read texts.
        """
        super().__init__()
        spec = placed(read_spec(folder), folder)
        towers = isinstance(found, ExportedTowers)
        part = "image" if towers else "model"
        if towers and not {"vocab_size", "cleans_texts"} <= set(spec):
            raise ValueError(f"{folder} does not say how its tokenizer reads texts; export the model anew")
        self._found, self._spec = found, spec
        self._tokenizer: Tokenizer | None = None
        self.name, self.preprocess = str(spec["name"]), Preprocess.from_dict(spec["preprocess"])
        self.image_size = self.preprocess.image_size
        self.embed_dim = int(spec["graphs"][part]["outputs"][-1]["shape"][1])
        self.visual = _ImageGraph(Path(folder) / spec["files"][part])
        self.text = SimpleNamespace(pooled_place=lambda ids: torch.zeros(len(ids)))  # it reads all at full length
        scale = torch.tensor(float(spec.get("logit_scale", 1.0))).log()
        self.logit_scale = nn.Parameter(scale, requires_grad=False)
        bias = spec.get("logit_bias")
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)), requires_grad=False)

    @property
    def context_length(self) -> int:
        """L."""
        return int(self._spec["context_length"])

    @property
    def tokenizer(self) -> Tokenizer:
        """Texts to (B, L) int64. Opened when it is first asked for.

        Raises:
            ValueError: without a text tower, or where the model has no tokenizer.
            FileNotFoundError: where the folder of its tokenizer has gone.
        """
        if not isinstance(self._found, ExportedTowers):
            raise ValueError(f"{self.name} was exported with its labels and reads no other texts; give the run")
        if self._tokenizer is None:
            spec = self._spec
            self._tokenizer = open_tokenizer(
                spec["tokenizer"], self.context_length, spec["vocab_size"], siglip=spec["cleans_texts"]
            )
        return self._tokenizer

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, C, H, W) pixels in 0..255 -> (B, E) of length one."""
        pixels = image.to(torch.uint8)
        if isinstance(self._found, ExportedTowers):
            return torch.from_numpy(self._found.run(pixels.numpy())["embeddings"])
        return self._found._features(pixels)

    def encode_text(self, text: Tensor) -> Tensor:
        """(B, L) int64 -> (B, E) of length one."""
        assert isinstance(self._found, ExportedTowers)
        return torch.from_numpy(np.asarray(self._found.encode_text(text.numpy())))
