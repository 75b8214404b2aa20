"""The image tower of OpenAI's CLIP and of open_clip models built like it; the text tower has no place in a backbone."""

from __future__ import annotations

from visionzoo.weights.adapters.layout import Layout
from visionzoo.weights.adapters.rules import move
from visionzoo.weights.adapters.vit_common import with_class_position

_BLOCK = "visual.transformer.resblocks.{i}."
_TEXT = "text tower and temperature of CLIP"

CLIP_TOWER = Layout(
    name="clip_tower",
    about="OpenAI's CLIP and open_clip, the image tower",
    family="vit",
    has_all=("visual.class_embedding", "visual.conv1.weight", _BLOCK.format(i=0) + "attn.in_proj_weight"),
    rules=(
        move("visual.class_embedding", "cls_token", lambda t: t[None, None], lambda t: t[0, 0]),
        move("visual.positional_embedding", "pos_embed", lambda t: t[None], lambda t: t[0]),
        move("visual.conv1.weight", "patch_embed.proj.weight"),
        move("visual.ln_pre.{p}", "norm_pre.{p}"),
        move(_BLOCK + "ln_1.{p}", "blocks.{i}.norm1.{p}"),
        move(_BLOCK + "attn.in_proj_{p}", "blocks.{i}.attn.qkv.{p}"),
        move(_BLOCK + "attn.out_proj.{p}", "blocks.{i}.attn.proj.{p}"),
        move(_BLOCK + "ln_2.{p}", "blocks.{i}.norm2.{p}"),
        move(_BLOCK + "mlp.c_fc.{p}", "blocks.{i}.mlp.fc1.{p}"),
        move(_BLOCK + "mlp.c_proj.{p}", "blocks.{i}.mlp.fc2.{p}"),
        move("visual.ln_post.{p}", "norm.{p}"),
    ),
    ignore=(
        ("visual.proj", "projection into the joint space of CLIP"),
        ("transformer.{x}", _TEXT),
        ("token_embedding.{x}", _TEXT),
        ("ln_final.{x}", _TEXT),
        *((name, _TEXT) for name in ("positional_embedding", "text_projection", "logit_scale", "attn_mask")),
        # Beside the weights in OpenAI's own files.
        *(
            (name, "sizes that OpenAI stores as tensors")
            for name in ("input_resolution", "context_length", "vocab_size")
        ),
    ),
    refine=with_class_position,
)
