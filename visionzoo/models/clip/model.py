"""CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343): images and texts in one space.

The keys are open_clip's for a timm image tower and a text tower of its own: ``visual.trunk.*``, ``visual.head.*``,
``text.*``, ``logit_scale`` and, with the sigmoid loss, ``logit_bias``.

Legend: B batch, C channels, (H, W) pixels, L context length, E embedding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionzoo.models.clip.config import QUICK, STATISTICS, TextConfig
from visionzoo.models.clip.image import ImageTower
from visionzoo.models.clip.text import TextTower
from visionzoo.models.clip.tokenizer import Tokenizer, open_tokenizer
from visionzoo.types import Preprocess
from visionzoo.weights.clip_record import clip_record

#: Of CLIP's loss: the temperature never falls below 1 / 100 (arXiv 2103.00020, section 2.5).
MAX_LOGIT_SCALE = math.log(100.0)
TRUNK = "visual.trunk."


class Clip(nn.Module):
    """Two towers. Made by :func:`visionzoo.create_clip`; answers to the calls of open_clip's models.

    Args:
        visual: the image tower.
        text: the text tower.
        loss: ``softmax`` or ``sigmoid``.
        preprocess: how pixels become the image tower's input.
        tokenizer: what :func:`visionzoo.models.clip.tokenizer.open_tokenizer` takes.
    """

    weights_family = "clip"
    head_prefixes: tuple[str, ...] = ()
    #: In a folder that holds several files, these are a whole CLIP.
    weight_files = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    num_classes = 0
    #: Whether ``encode_image`` normalises by itself, as an exported one does.
    takes_pixels = False

    def __init__(
        self,
        visual: ImageTower,
        text: TextTower,
        *,
        loss: str,
        preprocess: Preprocess,
        tokenizer: str = "clip",
        name: str = "a CLIP",
    ) -> None:
        super().__init__()
        self.visual = visual
        self.text = text
        sigmoid = loss == "sigmoid"
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0 if sigmoid else 1 / 0.07)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if sigmoid else None
        self.preprocess = preprocess
        self.name = name
        self.image_size = visual.image_size
        self.in_chans = visual.trunk.in_chans
        self.stem_key = TRUNK + visual.trunk.stem_key
        self.output_dict = False
        self.architecture: dict[str, Any] = {}
        #: What the maker of this model said of weights to come: ``activation``, ``preprocess``.
        self.stated: frozenset[str] = frozenset()
        self.tokenizer_source = tokenizer
        self._tokenizer: Tokenizer | None = None

    @property
    def preprocess(self) -> Preprocess:
        """How pixels become the image tower's input."""
        return self.visual.trunk.preprocess

    @preprocess.setter
    def preprocess(self, spec: Preprocess) -> None:
        self.visual.trunk.preprocess = spec

    @property
    def said_preprocess(self) -> Mapping[str, Any]:
        """What the maker of this model said of its preprocessing; see :attr:`Backbone.said_preprocess`."""
        return self.visual.trunk.said_preprocess

    @property
    def config(self) -> TextConfig:
        """The text tower's parts."""
        return self.text.config

    @property
    def activation(self) -> str:
        """The activation that the weights must have been trained with."""
        return self.text.config.activation

    @property
    def context_length(self) -> int:
        """L."""
        return self.text.config.context_length

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the text tower knows."""
        return self.text.config.vocab_size

    @property
    def embed_dim(self) -> int:
        """E."""
        projection = self.text.text_projection
        return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]

    @property
    def tokenizer(self) -> Tokenizer:
        """Texts to (B, L) int64. Opened when it is first asked for.

        Raises:
            ValueError: where the model has none, or one whose vocabulary is larger than the text tower's.
        """
        if self._tokenizer is None:
            # SigLIP is the one that reads padding, and cleaned text.
            siglip = not self.config.causal
            self._tokenizer = open_tokenizer(self.tokenizer_source, self.context_length, self.vocab_size, siglip=siglip)
        return self._tokenizer

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """(B, C, H, W) normalised images -> (B, E), of length one if ``normalize``."""
        features = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """(B, L) token ids -> (B, E), of length one if ``normalize``."""
        features = self.text(text)
        return F.normalize(features, dim=-1) if normalize else features

    def get_logits(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T) of every pair of images (B, C, H, W) and texts (T, L), and their transpose."""
        logits = self.logits(self.encode_image(image, normalize=True), self.encode_text(text, normalize=True))
        return logits, logits.T

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """(B, E) and (K, E), each of length one -> (B, K): scaled, and shifted where there is a bias."""
        logits = self.logit_scale.exp() * image_features @ text_features.T
        return logits if self.logit_bias is None else logits + self.logit_bias

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        """open_clip's answer to (B, C, H, W) and (T, L): normalised features (B, E) and (T, E), the scale and, where
        there is one, the bias.

        Returns:
            a tuple, or a dict if ``output_dict``; None stands for what was not given.
        """
        image_features = None if image is None else self.encode_image(image, normalize=True)
        text_features = None if text is None else self.encode_text(text, normalize=True)
        named = {
            "image_features": image_features,
            "text_features": text_features,
            "logit_scale": self.logit_scale.exp(),
        }
        if self.logit_bias is not None:
            named["logit_bias"] = self.logit_bias
        return named if self.output_dict else tuple(named.values())

    # What training needs to know.

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep CLIP's temperature within bounds; to be called after each step of the optimizer.

        SigLIP's has none (arXiv 2303.15343 and big_vision's trainer): the released models are beyond CLIP's.
        """
        if self.logit_bias is None:
            self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freeze the image backbone and keep it in eval mode (LiT, arXiv 2111.07991); its projection still learns.

        The arguments are open_clip's, see :meth:`ImageTower.lock`.
        """
        self.visual.lock(unlocked_groups, freeze_bn_stats)

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freeze the text tower but for its last layers, as open_clip counts them; see :meth:`TextTower.lock`."""
        self.text.lock(unlocked_layers, freeze_layer_norm)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass, to save memory."""
        self.visual.trunk.set_grad_checkpointing(enable)
        self.text.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are never decayed: tokens, position tables, temperature and bias."""
        names = {TRUNK + n for n in self.visual.trunk.no_weight_decay()} | {"text.positional_embedding", "logit_scale"}
        return names if self.logit_bias is None else names | {"logit_bias"}

    # What loading weights needs to know.

    def adapt_state_dict(
        self, state_dict: dict[str, Tensor], stored_size: tuple[int, int] | None = None
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Resample the image tower's position table to this model's grid; see :meth:`Backbone.adapt_state_dict`."""
        own = {k.removeprefix(TRUNK): v for k, v in state_dict.items() if k.startswith(TRUNK)}
        own, notes = self.visual.trunk.adapt_state_dict(own, stored_size)
        rest = {k: v for k, v in state_dict.items() if not k.startswith(TRUNK)}
        return rest | {TRUNK + k: v for k, v in own.items()}, notes

    def weights_metadata(self) -> dict[str, str]:
        """What goes into the header of exported weights, since tensors do not say it."""
        return {"activation": self.activation, "preprocess": json.dumps(self.preprocess.to_dict())}

    def check_origin(
        self,
        source: str,
        path: Path | None,
        keys: Collection[str],
        metadata: Mapping[str, str],
        stored: Preprocess | None,
    ) -> None:
        """Refuse weights whose activation is another than this model's, or unknown, or whose preprocessing is unknown.

        Args:
            source: what to call the weights.
            path: their file; None for a state dict.
            keys: of the state dict, as stored.
            metadata: of the file.
            stored: their preprocessing, where anything says it.

        Raises:
            ValueError: saying what to do.
        """
        record = clip_record(path, keys, metadata)
        if record.activation is not None and record.activation != self.activation:
            raise ValueError(
                f"weights from {source} were trained with {record.activation} ({record.origin}), this model computes "
                f"{self.activation}: its embeddings would be silently wrong. Build it with "
                f"create_clip(..., activation={record.activation!r}), or by a name"
                f"{' that ends in ' + QUICK if record.activation == 'quick_gelu' else ' without ' + QUICK}"
            )
        unknown = []
        if record.activation is None and "activation" not in self.stated:
            unknown.append(
                "with which activation they were trained: activation='quick_gelu' for OpenAI's, DFN's and MetaCLIP's, "
                "'gelu' for LAION's and DataComp's, 'gelu_tanh' for SigLIP in JAX or transformers"
            )
        if stored is None and "preprocess" not in self.stated:
            unknown.append(
                f"how their images were normalised: preprocess= one of {', '.join(map(repr, STATISTICS))} or a "
                "Preprocess; nearly all use 'openai', LAION-2B's ViT-L-14 'inception'"
            )
        if unknown:
            raise ValueError(
                f"weights from {source} do not say {'; nor '.join(unknown)}. Give it to create_clip, or put the "
                "open_clip_config.json or config.json that belongs to them beside the file"
            )
