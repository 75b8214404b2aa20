"""CLIPs of full width and little depth, and the networks of open_clip and transformers that they should equal."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn

from visionzoo.models.clip.config import named_config
from visionzoo.models.clip.create import build_clip
from visionzoo.models.clip.model import Clip
from visionzoo.weights import install_load_hook
from visionzoo.weights.adapters import layouts_named
from visionzoo.weights.exporting import facts_of


def materialise(model: nn.Module, seed: int = 0) -> nn.Module:
    """A model on the meta device gets memory, and every parameter and buffer a value of its own."""
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim < 2:  # norms and biases; a temperature of about 10
                p.normal_(0, 0.1, generator=generator).add_(
                    2.3 if name == "logit_scale" else float(name.endswith("weight"))
                )
            else:
                fan_in = p.shape[1] if p.ndim == 2 else p[0].numel()
                p.normal_(0, fan_in**-0.5, generator=generator)
        for name, b in model.named_buffers():
            if name.endswith("running_var"):
                b.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("running_mean"):
                b.normal_(0, 0.1, generator=generator)
            elif name.endswith("num_batches_tracked"):
                b.zero_()
    return model.eval()


def shallow(name: str, depth: int | None = 2, **options: Any) -> Clip:
    """The named CLIP at full width with ``depth`` blocks in each tower; a ResNet keeps its blocks. None for all."""
    with torch.device("meta"):
        model = build_clip(named_config(name), name=name, **options)
        trunk = model.visual.trunk
        if depth is not None:
            model.text.transformer.resblocks = model.text.transformer.resblocks[:depth]
            if hasattr(trunk, "blocks"):
                trunk.blocks = trunk.blocks[:depth]
    install_load_hook(model)
    return materialise(model)


def open_clip_twin(name: str, depth: int | None = 2) -> nn.Module:
    """open_clip's model of the same name and depth, uninitialised."""
    config = open_clip.get_model_config(name)
    custom = config.pop("custom_text", False)
    if depth is not None:
        config["text_cfg"]["layers"] = depth
        if isinstance(config["vision_cfg"].get("layers"), int):
            config["vision_cfg"]["layers"] = depth
    with torch.device("meta"):
        model = (CustomTextCLIP if custom else CLIP)(**config)
        trunk = getattr(model.visual, "trunk", None)
        if trunk is not None and depth is not None:
            trunk.blocks = trunk.blocks[:depth]
    model.to_empty(device="cpu")
    if getattr(model, "attn_mask", None) is not None:  # a buffer that no state dict holds
        length = model.context_length
        model.attn_mask = torch.full((length, length), float("-inf")).triu(1)
    return model.eval()


def as_open_clip(model: Clip) -> dict[str, Tensor]:
    """Our weights under the names of open_clip's model."""
    for layout in layouts_named("open_clip", "clip"):
        try:
            return layout.from_timm(model.state_dict(), facts_of(model))
        except ValueError:
            continue
    raise AssertionError(f"no layout of open_clip holds {model.name}")


def texts(model: Clip, seed: int = 0) -> Tensor:
    """Four texts of different lengths: random words between start and end, CLIP's way; SigLIP's are padded by 1."""
    config = model.text.config
    g = torch.Generator().manual_seed(seed)
    length, words = config.context_length, config.vocab_size
    ids = torch.zeros(4, length, dtype=torch.long) if config.causal else torch.ones(4, length, dtype=torch.long)
    for row, n in zip(ids, (0, 3, 7, length - 2), strict=True):
        row[1 : n + 1] = torch.randint(2, words - 2, (n,), generator=g)
        row[0], row[n + 1] = words - 2, words - 1 if config.causal else 1
    return ids


def images(model: Clip, count: int = 2, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *model.image_size, generator=g)


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Within ``tolerance * max(1, |reference|)``, and not equal by being nothing."""
    assert ours.shape == theirs.shape
    assert torch.isfinite(theirs).all()
    assert theirs.abs().max() > 0.1
    error = ((ours - theirs).abs() / theirs.abs().clamp_min(1.0)).max()
    assert error < tolerance, f"largest relative difference {error:.2e}"
