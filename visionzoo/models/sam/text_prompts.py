"""Names as prompts, through the text tower of a CLIP (arXiv 2304.02643, section 7.5, with text in training).

An experiment: the paper trains with CLIP's image embeddings of each mask and prompts with text; here the names of
objects are embedded directly.

Legend: N objects, (H, W) pixels, T width of a text embedding.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from visionzoo.models.bundle import CONFIG_FILE, load_bundle
from visionzoo.models.clip import Clip, create_clip
from visionzoo.models.sam.prompts import Prompts
from visionzoo.types import SegmentBatch
from visionzoo.weights.preprocessing import read_json

TEMPLATE = "a photo of a {}."


class TextPrompts:
    """A frozen text tower. It is no part of the segmentation model, whose checkpoints do not hold it.

    Args:
        clip: the model; its image tower is not used.
        template: the text of a name, with ``{}`` in its place. It should read like the captions that the CLIP was
            trained on: other words may blur what tells the names apart.
        source: where the CLIP is, to be found again.

    Raises:
        ValueError: for a template without a place for the name.
    """

    def __init__(self, clip: Clip, template: str = TEMPLATE, source: str = "") -> None:
        if template.count("{}") != 1:
            raise ValueError(
                f"text_template={template!r} must hold {{}} once, where the name goes; such as {TEMPLATE!r}"
            )
        self.template, self.source = template, source
        self.clip = clip.requires_grad_(False).eval()
        self.width = clip.embed_dim
        self._known: dict[str, Tensor] = {}

    @classmethod
    def load(cls, source: str, template: str = TEMPLATE) -> TextPrompts:
        """From a run of ``train.py clip``, or released weights with their configuration.

        Raises:
            ValueError: for a model of another task, and as the class.
        """
        if "schema_version" in read_json(Path(source) / CONFIG_FILE):
            model: nn.Module = load_bundle(source)[0]
        else:
            model = create_clip(weights=source)
        if not isinstance(model, Clip):
            raise ValueError(f"{source} holds no CLIP; text prompts need its text tower")
        return cls(model, template, source)

    def origin(self) -> dict[str, str]:
        """What :meth:`load` needs to make it again, for the configuration of a run."""
        folder = os.path.isdir(self.source)
        return {"model": os.path.abspath(self.source) if folder else self.source, "template": self.template}

    @torch.no_grad()
    def embed(self, names: Sequence[str]) -> Tensor:
        """(N, T), of length one. Each name is encoded once."""
        for name in dict.fromkeys(names):
            if name not in self._known:
                ids = self.clip.tokenizer([self.template.replace("{}", name)])
                self._known[name] = self.clip.encode_text(ids, normalize=True)[0].float().cpu().clone()
        return torch.stack([self._known[name] for name in names]) if names else torch.empty(0, self.width)

    def of_batch(self, batch: SegmentBatch) -> tuple[Prompts, Tensor]:
        """One prompt for each name in each image, and the union of the objects so called, (N, H, W) bool.

        N is 0 if no object has a name.
        """
        groups: dict[tuple[int, str], list[int]] = {}
        for i, (b, name) in enumerate(zip(batch.image_index.tolist(), batch.names, strict=True)):
            if name:
                groups.setdefault((b, name), []).append(i)
        device = batch.masks.device
        masks = [batch.masks[members].any(dim=0) for members in groups.values()]
        text = self.embed([name for _, name in groups]).to(device)
        index = torch.tensor([b for b, _ in groups], dtype=torch.int64, device=device)
        return Prompts.of(text=text, image_index=index), torch.stack(masks) if masks else batch.masks[:0]
