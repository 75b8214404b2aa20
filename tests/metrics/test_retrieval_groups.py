"""Recall where several captions are the same text."""

import pytest
import torch
from torch.nn import functional as F

import visionzoo.metrics.retrieval as module
from visionzoo.metrics.retrieval import retrieval_recall


def loop(image, text, owner, group, k):
    owned = [{int(g) for g, o in zip(group, owner, strict=True) if o == i} for i in range(len(image))]
    found_text = found_image = 0
    for i in range(len(image)):
        best = {}  # each text once
        for j in range(len(text)):
            best[int(group[j])] = max(best.get(int(group[j]), -9.0), float(image[i] @ text[j]))
        found_text += any(g in owned[i] for g in sorted(best, key=lambda g: -best[g])[:k])
    for j in range(len(text)):
        ranked = sorted(range(len(image)), key=lambda i: -float(image[i] @ text[j]))[:k]
        found_image += any(int(group[j]) in owned[i] for i in ranked)
    return found_text / len(image), found_image / len(text)


def case(seed, images=14, captions=31, groups=9):
    g = torch.Generator().manual_seed(seed)
    owner = torch.cat((torch.arange(images), torch.randint(images, (captions - images,), generator=g)))
    owner = owner[torch.randperm(captions, generator=g)]
    names = torch.randint(-(2**62), 2**62, (groups,), generator=g)  # hashes of texts
    group = names[torch.randint(groups, (captions,), generator=g)]
    image = F.normalize(torch.randn(images, 6, generator=g), dim=1)
    text = F.normalize(image[owner] + 1.5 * torch.randn(captions, 6, generator=g), dim=1)
    return image, text, owner, group


@pytest.mark.parametrize("chunk", [1, 60, 2**24])
def test_against_a_loop(chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    for seed in range(4):
        image, text, owner, group = case(seed)
        result = retrieval_recall(image, text, owner, (1, 2, 5), group)
        alone = retrieval_recall(image, text, owner, (1, 2, 5))
        for k in (1, 2, 5):
            expected = loop(image, text, owner, group, k)
            assert (result[f"image_to_text_r{k}"], result[f"text_to_image_r{k}"]) == pytest.approx(expected)
        assert all(result[name] >= alone[name] for name in alone)
        assert result["text_to_image_r1"] > alone["text_to_image_r1"]


def test_copies_of_a_wrong_text_are_one_wrong_text():
    """Captions made of classes: ten images of each of three, whose own text comes second each time."""
    label = torch.arange(3).repeat_interleave(10)
    near = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.6, 0.8], [0.8, 0.0, 0.6]])  # the next class is nearer
    result = retrieval_recall(near[label], torch.eye(3)[label], torch.arange(30), (1, 2), label)
    assert (result["image_to_text_r1"], result["image_to_text_r2"]) == (0.0, 1.0)


def test_groups_of_one_change_nothing():
    image, text, owner, _ = case(0)
    numbers = torch.randperm(len(text)) * 1000 - 7
    assert retrieval_recall(image, text, owner, group=numbers) == retrieval_recall(image, text, owner)


def test_images_that_share_every_caption_are_all_right():
    image, text = torch.eye(4)[[0, 0, 1, 1, 2]], torch.eye(4)[[0, 0, 1, 1, 2]]
    shared = torch.tensor([5, 5, -3, -3, 8])
    result = retrieval_recall(image, text, torch.arange(5), (1,), shared)
    assert set(result.values()) == {1.0}
    assert retrieval_recall(image, text, torch.arange(5), (1,))["text_to_image_r1"] == pytest.approx(0.2)


def test_a_group_for_each_caption():
    image, text, owner, group = case(0)
    with pytest.raises(ValueError, match=r"group \(30,\) must have one number for each of the 31 captions"):
        retrieval_recall(image, text, owner, group=group[1:])
