"""Reconstructions of a person's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visionzoo.cli.main import main
from visionzoo.inference.reconstruction import draw_reconstruction
from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.models.mae import create_mae
from visionzoo.models.masking import MaskedOutput, reconstruct
from visionzoo.models.preprocess import Normalize


@pytest.fixture
def mae_run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = create_mae("vit_nano_patch4_32", decoder_dim=32, decoder_depth=1, decoder_heads=2)
    config = ModelConfig(task="mae", architecture=model.architecture, preprocess=model.preprocess)
    save_bundle(model, config, tmp_path / "mae")
    return tmp_path / "mae"


def test_a_sheet_has_a_row_for_each_image(mae_run: Path, photos: Path, tmp_path: Path) -> None:
    files = [photos / "a.png", photos / "b.jpg"]
    one = draw_reconstruction(files[:1], mae_run, tmp_path / "one.png")
    two = draw_reconstruction(files, mae_run, tmp_path / "two.png", mask_ratio=0.5, seed=3)
    assert (one.hidden, one.patches, two.hidden) == (48, 64, 32)
    heights = [Image.open(p.out).height for p in (one, two)]
    assert heights[1] > 1.7 * heights[0]
    again = draw_reconstruction(files, mae_run, tmp_path / "again.png", mask_ratio=0.5, seed=3)
    assert again.loss == two.loss
    assert np.array_equal(np.asarray(Image.open(again.out)), np.asarray(Image.open(two.out)))


def test_colours_come_back_as_they_were() -> None:
    """A prediction that is right, in units of each patch's own mean and deviation, gives the image itself."""
    from visionzoo.losses.masked import patch_statistics, patchify

    model = create_mae("vit_nano_patch4_32", decoder_dim=32, decoder_depth=1, decoder_heads=2)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalize = Normalize(model.preprocess)
    x = normalize(pixels)
    patches = patchify(x, 4)
    mean, std = patch_statistics(patches)
    made = reconstruct(x, MaskedOutput(x.sum(), (patches - mean) / std, torch.ones(2, 64)), 4, norm_pix=True)
    assert made.borrows_statistics
    assert "taken from the original" in made.note
    assert torch.equal(normalize.invert(made.reconstruction), pixels)
    assert torch.equal(normalize.invert(made.original), pixels)


def test_bad_input(mae_run: Path, run_folder: Path, photos: Path, tmp_path: Path, capsys: Any) -> None:
    image, out = photos / "a.png", tmp_path / "sheet.png"
    with pytest.raises(ValueError, match="task 'classify', which cannot reconstruct"):
        draw_reconstruction([image], run_folder, out)
    with pytest.raises(ValueError, match=r"mask_ratio=1\.5 must be above 0 and below 1"):
        draw_reconstruction([image], mae_run, out, mask_ratio=1.5)
    with pytest.raises(ValueError, match="leaves no visible patch of 64"):
        draw_reconstruction([image], mae_run, out, mask_ratio=0.99)
    with pytest.raises(ValueError, match="no images"):
        draw_reconstruction([], mae_run, out)
    assert not out.exists()
    assert main(["reconstruct", str(image), "--model", str(mae_run), "--out", str(image)]) == 2
    assert "is the image itself" in capsys.readouterr().err
    assert main(["reconstruct", str(image), "--model", str(mae_run), "--out", str(out)]) == 0
    assert "48 of 64 patches hidden" in capsys.readouterr().out
