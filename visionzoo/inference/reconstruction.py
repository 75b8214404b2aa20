"""What a masked image model makes of a person's own images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from visionzoo.data.images import ImageInput, open_image
from visionzoo.data.keys import sample_key
from visionzoo.data.transforms import EvalTransform
from visionzoo.inference.device import resolve_device
from visionzoo.models.bundle import load_bundle
from visionzoo.models.mae import MAE
from visionzoo.models.masking import check_ratio
from visionzoo.models.preprocess import Normalize
from visionzoo.models.simmim import SimMIM
from visionzoo.viz.reconstruction import reconstruction_sheet
from visionzoo.weights.local import local_source


class Reconstructed(NamedTuple):
    """What :func:`draw_reconstruction` did."""

    out: Path
    loss: float  #: over all images
    hidden: int  #: patches that were hidden in each image
    patches: int  #: of each image


def draw_reconstruction(
    images: Sequence[ImageInput],
    model: str | Path,
    out: str | Path,
    *,
    mask_ratio: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Reconstructed:
    """Hide most of each image, let the model draw what was hidden, and write the sheet: a row of four for each image.

    Args:
        images: what ``open_image`` takes.
        model: run folder of ``train.py mae``, or ``embedded``.
        out: the picture to write.
        mask_ratio: share of each image that is hidden, in (0, 1); None for the one it was trained with.
        seed: chooses what is hidden.
        device: None for a GPU where there is one, otherwise the CPU.

    Raises:
        FileNotFoundError: if there is no such image or run.
        ValueError: for no images, an image that cannot be read, a model of another task, or a ratio outside (0, 1) or
            one that leaves no patch to see or to hide.
    """
    if not images:
        raise ValueError("no images to reconstruct")
    where, model = resolve_device(device), local_source(model, "mae")
    module, config = load_bundle(model, where)
    if not isinstance(module, MAE | SimMIM):
        raise ValueError(
            f"{model} holds a model of task {config.task!r}, which cannot reconstruct; give a run of `train.py mae`"
        )
    if mask_ratio is not None:
        check_ratio(mask_ratio, str(module.mask_ratio))
        module.mask_ratio = mask_ratio
    transform, normalize = EvalTransform(config.preprocess), Normalize(config.preprocess).to(where)
    x = normalize(torch.stack([transform(open_image(image)) for image in images]).to(where))
    rows, columns = module.grid_of((x.shape[2], x.shape[3]))
    patches = rows * columns
    noise = torch.stack([_noise(patches, seed, i) for i in range(len(images))]).to(where)
    with torch.inference_mode():
        loss = float(module.loss(x, noise))
        made = module.reconstruct(x, noise)
    pictures = [normalize.invert(p).permute(0, 2, 3, 1).cpu().numpy() for p in made[:4]]
    hidden = patches - module.num_visible((rows, columns))
    title = f"{Path(model).resolve().name}: {hidden} of {patches} patches hidden, loss {loss:.3f}"
    return Reconstructed(reconstruction_sheet(pictures, out, note=made.note, title=title), loss, hidden, patches)


def _noise(patches: int, seed: int, image: int) -> Tensor:
    return torch.rand(patches, generator=torch.Generator().manual_seed(sample_key(seed, image)))
