"""The networks of other libraries, with the weights of ours. A library is imported when its network is asked for."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from visionzoo.weights.adapters import LAYOUTS, layouts_named
from visionzoo.weights.exporting import facts_of

TORCHVISION = {
    "vit_base_patch16_224": "vit_b_16",
    "swin_tiny_patch4_window7_224": "swin_t",
    "swin_small_patch4_window7_224": "swin_s",
    "swin_base_patch4_window7_224": "swin_b",
}


class Absent(Exception):
    """A peer cannot take part; the message says why."""


def installed(package: str) -> None:
    """
    Raises:
        Absent: if the package is not there.
    """
    if importlib.util.find_spec(package) is None:
        raise Absent("not installed")


def those_there(builders: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """What each builder makes, and why the others are absent."""
    there, absent = {}, {}
    for name, build in builders.items():
        try:
            there[name] = build()
        except Absent as why:
            absent[name] = str(why)
            print(f"{name} is left out: {why}")
    return there, absent


def moved(ours: nn.Module, library: str, family: str) -> dict[str, Tensor]:
    """Weights of ours under the names of another library's network, which may have several layouts.

    Raises:
        Absent: where none holds this model.
    """
    for layout in layouts_named(library, family):
        with contextlib.suppress(ValueError):  # another network's layout
            return layout.from_timm(ours.state_dict(), facts_of(ours))
    raise Absent(f"no layout of {library} holds this model")


# Backbones with a head.


def backbone(kind: str, name: str, ours: Any, classes: int) -> nn.Module:
    """The same classifier from timm, torchvision or transformers.

    Raises:
        Absent: if the library is not installed or has no such model.
    """
    installed(kind)
    if kind == "timm":
        import timm

        twin: nn.Module = timm.create_model(name, num_classes=classes)
        twin.load_state_dict(ours.state_dict())
        return twin
    if kind == "torchvision":
        import torchvision

        if name not in TORCHVISION:
            raise Absent("has no such model")
        twin = getattr(torchvision.models, TORCHVISION[name])(num_classes=classes)
        twin.load_state_dict(moved(ours, "torchvision", ours.weights_family))
        return twin
    return _transformers_backbone(name, ours, classes)


def _transformers_backbone(name: str, ours: Any, classes: int) -> nn.Module:
    import transformers

    if name.startswith("vit_"):
        block = ours.blocks[0]
        config = transformers.ViTConfig(
            hidden_size=ours.num_features,
            num_hidden_layers=len(ours.blocks),
            num_attention_heads=block.attn.num_heads,
            intermediate_size=block.mlp.fc1.out_features,
            layer_norm_eps=1e-6,
            image_size=ours.image_size[0],
            patch_size=ours.stride,
            num_labels=classes,
        )
        twin: nn.Module = transformers.ViTForImageClassification(config)
    elif name.startswith("swin_"):
        config = transformers.SwinConfig(
            image_size=ours.image_size[0],
            embed_dim=ours.embed_dim,
            depths=[len(stage.blocks) for stage in ours.layers],
            num_heads=[stage.blocks[0].attn.num_heads for stage in ours.layers],
            window_size=7,
            num_labels=classes,
            drop_path_rate=0.0,
        )
        twin = transformers.SwinForImageClassification(config)
    else:
        raise Absent("has no such model here")
    twin.load_state_dict(moved(ours, "transformers5", ours.weights_family))
    return twin


# MAE.


def mae(ours: Any) -> nn.Module:
    """transformers' ViTMAEForPreTraining.

    Raises:
        Absent: if transformers is not installed.
    """
    installed("transformers")
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    encoder, decoder = ours.encoder, ours.decoder
    block, light = encoder.blocks[0], decoder.blocks[0]
    config = ViTMAEConfig(
        hidden_size=encoder.num_features,
        num_hidden_layers=len(encoder.blocks),
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc1.out_features,
        layer_norm_eps=1e-6,
        image_size=encoder.image_size[0],
        patch_size=ours.patch_size,
        decoder_num_attention_heads=light.attn.num_heads,
        decoder_hidden_size=decoder.embed.out_features,
        decoder_num_hidden_layers=len(decoder.blocks),
        decoder_intermediate_size=light.mlp.fc1.out_features,
        mask_ratio=ours.mask_ratio,
        norm_pix_loss=ours.norm_pix_loss,
    )
    twin = ViTMAEForPreTraining(config)
    twin.load_state_dict(LAYOUTS["transformers5_mae"].from_timm(ours.state_dict()))
    return twin


# CLIP.


def open_clip_model(ours: Any, depth: int | None = None) -> nn.Module:
    """open_clip's network of the same name; ``depth`` blocks in each tower, where ours was cut to as many.

    Raises:
        Absent: if open_clip is not installed, or no layout of it holds this model.
    """
    installed("open_clip")
    import open_clip

    config = open_clip.get_model_config(ours.name)
    if depth is not None:
        config["text_cfg"]["layers"] = config["vision_cfg"]["layers"] = depth
    custom = config.pop("custom_text", False)
    twin = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    twin.load_state_dict(moved(ours, "open_clip", "clip"))
    return twin


def transformers_clip(ours: Any) -> nn.Module:
    """transformers' CLIPModel.

    Raises:
        Absent: if transformers is not installed, or has no such model.
    """
    installed("transformers")
    from transformers import CLIPConfig, CLIPModel

    trunk, words = ours.visual.trunk, ours.config
    if not hasattr(trunk, "blocks") or ours.logit_bias is not None or not words.causal:
        raise Absent("has no such model")
    block = trunk.blocks[0]
    config = CLIPConfig(
        text_config={
            "hidden_size": words.width,
            "intermediate_size": 4 * words.width,
            "num_hidden_layers": len(ours.text.transformer.resblocks),
            "num_attention_heads": words.heads,
            "vocab_size": words.vocab_size,
            "max_position_embeddings": words.context_length,
            "hidden_act": words.activation,
            "eos_token_id": words.vocab_size - 1,
        },
        vision_config={
            "hidden_size": trunk.num_features,
            "intermediate_size": block.mlp.fc1.out_features,
            "num_hidden_layers": len(trunk.blocks),
            "num_attention_heads": block.attn.num_heads,
            "image_size": ours.image_size[0],
            "patch_size": trunk.stride,
            "hidden_act": words.activation,
        },
        projection_dim=ours.embed_dim,
    )
    twin = CLIPModel(config)
    twin.load_state_dict(LAYOUTS["transformers_clip"].from_timm(ours.state_dict()))
    return twin


# Segment Anything.


def segment_anything_model(ours: Any) -> nn.Module:
    """Meta's network.

    Raises:
        Absent: if segment-anything is not installed.
    """
    installed("segment_anything")
    from segment_anything import modeling

    encoder, size, grid = ours.image_encoder, ours.image_size, ours.embedding_size
    vit = modeling.ImageEncoderViT(
        img_size=size[0],
        embed_dim=encoder.config.embed_dim,
        depth=len(encoder.blocks),
        num_heads=encoder.config.num_heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=encoder.config.window,
        global_attn_indexes=encoder.config.global_blocks,
    )
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    decoder = modeling.MaskDecoder(transformer_dim=256, transformer=transformer)
    twin = modeling.Sam(vit, modeling.PromptEncoder(256, grid, size, 16), decoder)
    twin.load_state_dict(LAYOUTS["segment_anything"].from_timm(ours.state_dict()))
    return twin.eval()


def transformers_sam(ours: Any) -> nn.Module:
    """transformers' SamModel.

    Raises:
        Absent: if transformers is not installed.
    """
    installed("transformers")
    from transformers import SamConfig, SamModel

    encoder = ours.image_encoder
    width = encoder.config.embed_dim
    vision = {
        "hidden_size": width,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": encoder.config.num_heads,
        "mlp_dim": 4 * width,
        "image_size": ours.image_size[0],
        "window_size": encoder.config.window,
        "global_attn_indexes": list(encoder.config.global_blocks),
    }
    config = SamConfig(
        vision_config=vision,
        prompt_encoder_config={"image_size": ours.image_size[0]},
        mask_decoder_config={"layer_norm_eps": 1e-5},  # Meta's decoder has the default eps
    )
    twin = SamModel(config)
    twin.load_state_dict(LAYOUTS["transformers_sam"].from_timm(ours.state_dict()))
    return twin.eval()
