"""A heat map over a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from visionzoo.viz.figure import new_figure, plain, save_figure


def heat_overlay(image: np.ndarray | Image.Image, heat: np.ndarray, out: str | Path, *, title: str = "") -> Path:
    """Draw a picture, and beside it the same under its heat map.

    Colours run from the least to the most attended cell; the bar says how often each is looked at compared with a cell
    that gets its equal share.

    Args:
        image: (H, W, 3 or 1) uint8, or a PIL image; the part that the model saw.
        heat: (h, w), not negative, for the whole picture.
        out: the file to write; its suffix chooses the format.
        title: above the pictures.

    Raises:
        ValueError: for a heat map that is not two-dimensional, not finite, negative somewhere or zero everywhere.
    """
    values = np.asarray(heat, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all() or values.min() < 0 or values.max() == 0:
        raise ValueError(
            f"a heat map of shape {values.shape} must be (h, w), finite, not negative and not zero everywhere"
        )
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    picture = (Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB")
    width, height = picture.size
    share = values / values.mean()
    # Resized by PIL, whose edges agree with the picture's.
    smooth = Image.fromarray(share.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)

    panel = 4.2
    figure = new_figure(2 * panel + 1.0, panel * min(max(height / width, 0.3), 3.0) + (0.5 if title else 0.2))
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.imshow(picture)
        axes.set_axis_off()
    shown = right.imshow(np.asarray(smooth), cmap="inferno", alpha=0.65, vmin=share.min(), vmax=share.max())
    bar = figure.colorbar(shown, ax=right, fraction=0.046, pad=0.03, label="times its equal share")
    bar.outline.set_visible(False)
    if title:
        figure.suptitle(plain(title), fontsize=10)
    return save_figure(figure, out)
