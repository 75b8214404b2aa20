"""What a computation costs, in numbers that are the same on every run: operators, multiply-adds, kept memory.

    python tests/cost.py

prints the table of ``tests/test_cost.py`` as it is now.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import visionzoo as vz
from visionzoo.losses.contrastive import info_nce
from visionzoo.losses.segmentation import prompt_loss
from visionzoo.macs import count_macs
from visionzoo.models.sam.prompts import Prompts

#: Operators that only look at the same memory in another way.
VIEWS = {
    "view", "_unsafe_view", "expand", "permute", "transpose", "t", "detach", "slice", "select", "unsqueeze", "squeeze",
    "unbind", "split", "split_with_sizes", "as_strided", "alias", "reshape", "_reshape_alias", "unfold", "lift_fresh",
}  # fmt: skip


class Cost(NamedTuple):
    """Of one call."""

    operators: (
        int  #: of the forward pass that compute or copy something; a backward pass's differ among versions of torch
    )
    mega_macs: float  #: multiply-adds of matrix products and convolutions, in millions
    kept_mib: float  #: memory that the forward pass keeps for the backward pass, weights not counted


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


def inference(run: Callable[[], Any]) -> Cost:
    """The cost of a call without gradients."""
    with torch.inference_mode():
        macs = _macs(run)  # first: a process keeps position tables, and which test was first must not be counted
        return Cost(_operators(run), macs, 0.0)


def training(module: torch.nn.Module, run: Callable[[], Tensor]) -> Cost:
    """The cost of a loss and its gradient."""
    weights = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    def step() -> None:
        run().backward()
        module.zero_grad(set_to_none=True)

    macs, operators = _macs(step), _operators(run)  # in this order, as above
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = run()
    held = sum(kept.values()) / 2**20
    del loss
    return Cost(operators, macs, round(held, 3))


def _operators(run: Callable[[], Any]) -> int:
    with _Counter() as counter:
        run()
    return counter.count


def _macs(run: Callable[[], Any]) -> float:
    return round(count_macs(run) / 1e6, 3)


def _loss(out: Any) -> Tensor:
    return sum((x.float() ** 2).sum() for x in tree_leaves(out) if isinstance(x, Tensor) and x.requires_grad)  # type: ignore[return-value]


BACKBONES = (
    "vit_tiny_patch16_224",
    "vit_nano_patch4_32",
    "deit3_small_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch16_dinov3",
    "beitv2_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "samvit_base_patch16",
)


def cases() -> dict[str, Callable[[], Cost]]:
    """Every guarded computation by name. Small images, batch 2, random weights."""
    found: dict[str, Callable[[], Cost]] = {}
    for name in BACKBONES:
        found[f"{name}, inference"] = lambda name=name: _backbone(name, train=False)  # type: ignore[misc]
        found[f"{name}, training"] = lambda name=name: _backbone(name, train=True)  # type: ignore[misc]
    found |= {"mae, training": _mae, "clip, training": _clip, "sam, click": _click, "segment, training": _segment}
    return found


def _backbone(name: str, *, train: bool) -> Cost:
    torch.manual_seed(0)
    size = {"vit_nano_patch4_32": 32, "vit_small_patch14_dinov2": 112, "samvit_base_patch16": 128}.get(name)
    model = vz.create_backbone(name, image_size=size or (128 if "swin" in name else 96))
    images = torch.randn(2, 3, *model.image_size)
    if not train:
        model.eval()
        return inference(lambda: model(images))
    return training(model.train(), lambda: _loss(model(images)))


def _mae() -> Cost:
    torch.manual_seed(0)
    model = vz.create_mae("vit_nano_patch4_32", decoder_dim=64, decoder_depth=1, decoder_heads=4).train()
    images = torch.randn(4, 3, 32, 32)
    return training(model, lambda: model(images).loss)


def _clip() -> Cost:
    torch.manual_seed(0)
    model = vz.create_clip(backbone="vit_nano_patch4_32", text="nano", context_length=16).train()
    images, texts = torch.randn(4, 3, 32, 32), torch.randint(1, 200, (4, 16))

    def run() -> Tensor:
        image, text = model.encode_image(images, normalize=True), model.encode_text(texts, normalize=True)
        return info_nce(image, text, model.logit_scale)

    return training(model, run)


def _sam() -> Any:
    torch.manual_seed(0)
    return vz.create_sam("vit_nano_patch4_32", image_size=64, embedding_stride=8, decoder_dim=64)


def _prompts() -> Prompts:
    return Prompts(torch.rand(6, 2, 2) * 60, torch.ones(6, 2, dtype=torch.int64), image_index=torch.arange(6) % 2)


def _click() -> Cost:
    model = _sam().eval()
    embeddings = torch.randn(2, 64, *model.embedding_size)
    return inference(lambda: model.decode(embeddings, _prompts()))


def _segment() -> Cost:
    model = _sam().train()
    images = torch.randn(2, 3, 64, 64)
    targets = (torch.rand(6, 1, *model.mask_size) > 0.5).float()

    def run() -> Tensor:
        out = model.decode(model.image_encoder(images), _prompts(), None)
        return prompt_loss(out.masks, out.scores, targets).total

    return training(model, run)


if __name__ == "__main__":
    for case, measure in cases().items():
        print(f"    {case!r}: Cost{tuple(measure())},")
