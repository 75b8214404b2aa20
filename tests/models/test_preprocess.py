import numpy as np
import pytest
import torch

from visionzoo.models.preprocess import Normalize
from visionzoo.types import Preprocess

SPEC = Preprocess(image_size=(4, 4))


def test_normalize_is_the_written_out_form():
    images = torch.randint(0, 256, (3, 3, 5, 7), dtype=torch.uint8)
    expected = np.empty((3, 3, 5, 7))
    for c in range(3):
        expected[:, c] = (images[:, c].numpy() / 255.0 - SPEC.mean[c]) / SPEC.std[c]
    torch.testing.assert_close(Normalize(SPEC)(images).double(), torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_every_level_survives_a_round_trip():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    normalize = Normalize(SPEC)
    assert torch.equal(normalize.invert(normalize(levels)), levels)


def test_statistics_repeat_over_more_channels():
    normalize = Normalize(SPEC, in_chans=5)
    out = normalize(torch.full((1, 5, 1, 1), 100, dtype=torch.uint8)).flatten()
    assert torch.equal(out[:2], out[3:])


def test_float_images_are_refused():
    with pytest.raises(ValueError, match="takes uint8 pixels"):
        Normalize(SPEC)(torch.zeros(1, 3, 4, 4))


def test_constants_are_not_in_the_state_dict():
    assert Normalize(SPEC).state_dict() == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interpolation": "cubic"}, "interpolation='cubic' is unknown; use one of nearest"),
        ({"resize_mode": "stretch"}, "resize_mode='stretch'"),
        ({"image_size": (0, 4)}, "image_size"),
        ({"std": (0.0, 1.0, 1.0)}, "std and value_scale=255.0 above 0"),
        ({"crop_pct": 2.5}, r"crop_pct=2.5 must be in \(0, 2\]"),
    ],
)
def test_bad_specs_name_the_value(change, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**{"image_size": (4, 4), **change})


def test_spec_round_trips_through_plain_types():
    spec = Preprocess(image_size=(8, 16), resize_mode="longest", pad_anchor="top_left", crop_pct=0.875)
    assert Preprocess.from_dict(spec.to_dict()) == spec
    with pytest.raises(ValueError, match="unknown preprocess keys"):
        Preprocess.from_dict({"image_size": [4, 4], "sdt": [1.0]})
