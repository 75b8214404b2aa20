import pytest
import torch
from torch.nn import functional as F

import visionzoo.metrics.retrieval as module
from visionzoo.metrics.retrieval import retrieval_recall


def loop(image, text, owner, k):
    found_text = found_image = 0
    for i in range(len(image)):
        ranked = sorted(range(len(text)), key=lambda j: -float(image[i] @ text[j]))[:k]
        found_text += any(owner[j] == i for j in ranked)
    for j in range(len(text)):
        ranked = sorted(range(len(image)), key=lambda i: -float(image[i] @ text[j]))[:k]
        found_image += int(owner[j]) in ranked
    return found_text / len(image), found_image / len(text)


def case(seed=0, images=9, captions=23):
    g = torch.Generator().manual_seed(seed)
    owner = torch.cat((torch.arange(images), torch.randint(images, (captions - images,), generator=g)))
    owner = owner[torch.randperm(captions, generator=g)]
    image = F.normalize(torch.randn(images, 5, generator=g), dim=1)
    text = F.normalize(image[owner] + 0.8 * torch.randn(captions, 5, generator=g), dim=1)
    return image, text, owner


@pytest.mark.parametrize("chunk", [1, 50, 2**24])
def test_against_a_loop_with_several_captions_for_an_image(chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    for seed in range(3):
        given = case(seed)
        result = retrieval_recall(*given, ks=(1, 3, 8))
        for k in (1, 3, 8):
            expected = loop(*given, k)
            assert (result[f"image_to_text_r{k}"], result[f"text_to_image_r{k}"]) == pytest.approx(expected)
        assert 0 < result["image_to_text_r1"] < result["image_to_text_r8"]


def test_constant_features_find_nothing():
    result = retrieval_recall(torch.ones(12, 3), torch.ones(24, 3), torch.arange(24) % 12)
    assert set(result.values()) == {0.0}


def test_perfect_features_find_everything():
    eye = torch.eye(6)
    assert set(retrieval_recall(eye, eye, torch.arange(6)).values()) == {1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, t, o: (i, t, o[:-1]), "must be"),
        (lambda i, t, o: (i * torch.nan, t, o), "NaN"),
        (lambda i, t, o: (i, t, o + 1), "owner runs from 1 to 9; there are images 0..8"),
        (lambda i, t, o: (i, t, torch.zeros_like(o)), "8 of 9 images have no caption"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        retrieval_recall(*change(*case()))


def test_bad_k():
    with pytest.raises(ValueError, match=r"ks=\[0\]"):
        retrieval_recall(*case(), ks=(0,))
