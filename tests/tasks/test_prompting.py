"""Simulated conversations: what is asked, in which order, and what is never asked."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from visionzoo.models.sam import Sam, create_sam
from visionzoo.models.sam.model import SamOutput
from visionzoo.models.sam.prompts import BOTTOM_RIGHT, IGNORED, NOT_A_POINT, TOP_LEFT, Prompts
from visionzoo.tasks import prompting
from visionzoo.tasks.prompting import Answer, Objects, best_masks, evaluate_prompts, training_rounds, upscale

SIZE, LOW = 16, 8


class Stub:
    """Answers with random masks, or the ones it is given, and remembers what it was asked."""

    def __init__(self, masks: Tensor | None = None, *, ambiguous: bool = True) -> None:
        self.masks, self.ambiguous = masks, ambiguous
        self.asked: list[tuple[Prompts, bool | None]] = []

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool | None = True) -> SamOutput:
        self.asked.append((prompts, multimask))
        count = {None: 4, True: 3, False: 1}[multimask]
        masks = torch.randn(prompts.number, count, LOW, LOW) if self.masks is None else self.masks[:, None]
        masks = masks.expand(-1, count, -1, -1).clone().requires_grad_()
        return SamOutput(masks, torch.rand(prompts.number, count))


def objects(n: int = 6, padded: int = 4) -> Objects:
    """Squares at random places, in images whose last columns are padding."""
    masks = torch.zeros(n, SIZE, SIZE, dtype=torch.bool)
    for mask in masks:
        y, x = torch.randint(0, SIZE - padded - 4, (2,)).tolist()
        mask[y : y + 4, x : x + 4] = True
    valid = torch.ones_like(masks)
    valid[:, :, SIZE - padded :] = False
    return Objects(masks, torch.arange(n) % 2, valid)


def talk(stub: Stub, some: Objects, **options: Any) -> list[Answer]:
    given: dict[str, Any] = {"clicks": 4, "mask_rounds": 2, "box_share": 0.5, **options}
    return [a for r in training_rounds(cast(Sam, stub), torch.zeros(2, 1, 1, 1), some, **given) for a in r]


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_a_conversation(seed: int) -> None:
    torch.manual_seed(seed)
    stub = Stub()
    some = objects()
    answers = talk(stub, some)
    assert [multimask for _, multimask in stub.asked] == [None, *[False] * 6]
    first, boxed, *later = answers
    assert first.output.masks.shape[1] == 3
    assert boxed.output.masks.shape[1] == 1
    assert [a.output.masks.shape[1] for a in later] == [1] * 6
    assert torch.equal(boxed.rows, (first.prompts.labels[:, 0] == TOP_LEFT).nonzero()[:, 0])
    assert all(torch.equal(a.rows, torch.arange(6)) for a in (first, *later))

    tokens = [prompts.points.shape[1] for prompts, _ in stub.asked]
    new = [b - a for a, b in pairwise(tokens)]
    assert tokens[0] == 2
    assert sorted(new) == [0, 0, 1, 1, 1, 1]
    assert new[0] == 1, "a click comes first"
    assert new[-1] == 0, "the last round has none"
    assert stub.asked[0][0].masks is None
    for (prompts, _), before in zip(stub.asked[1:], (first, *later), strict=False):
        assert prompts.masks is not None
        assert torch.equal(prompts.masks, best_masks(before.output))
        assert not prompts.masks.requires_grad


def test_where_a_click_means_one_thing_the_one_answer_goes_on() -> None:
    torch.manual_seed(0)
    stub = Stub(ambiguous=False)
    three, one, *later = talk(stub, objects())
    assert three.output.masks.shape[1] == 3  # still learned, for those who ask for three
    assert one.output.masks.shape[1] == 1
    assert torch.equal(one.rows, torch.arange(6)), "clicks and boxes alike"
    for (prompts, _), before in zip(stub.asked[1:], (one, *later), strict=False):
        assert prompts.masks is not None
        assert torch.equal(prompts.masks, before.output.masks)
    stub.asked.clear()
    evaluate_prompts(cast(Sam, stub), torch.zeros(2, 1, 1, 1), objects(), clicks=3)
    assert {multimask for _, multimask in stub.asked} == {False}


def test_a_round_without_a_click_comes_at_different_places() -> None:
    places = set()
    for seed in range(20):
        torch.manual_seed(seed)
        stub = Stub()
        talk(stub, objects(2))
        tokens = [prompts.points.shape[1] for prompts, _ in stub.asked]
        places.add(next(i for i in range(1, 7) if tokens[i] == tokens[i - 1]))
    assert places == {2, 3, 4, 5}


def test_corrective_clicks_are_in_the_error_and_never_in_padding() -> None:
    torch.manual_seed(0)
    some = objects(8, padded=6)
    stub = Stub()
    seen = set()
    for answer in talk(stub, some, clicks=6, mask_rounds=0)[2:]:
        given = answer.prompts
        assert given.masks is not None
        before = upscale(given.masks, (SIZE, SIZE)) > 0
        for i, (x, y) in enumerate(given.points[:, -1].long().tolist()):
            wanted = bool(some.masks[i, y, x])
            assert some.valid[i, y, x]
            assert wanted != bool(before[i, y, x]), "only what is wrong is clicked on"
            assert int(given.labels[i, -1]) == int(wanted)
            seen.add(wanted)
    assert seen == {True, False}


def test_a_mask_that_is_right_gets_no_click() -> None:
    some = objects(3)
    right = torch.nn.functional.interpolate(some.masks[:, None].float(), (LOW, LOW), mode="area")[:, 0] * 20 - 10
    exact = Objects(upscale(right[:, None], (SIZE, SIZE)) > 0, some.image_index, torch.ones_like(some.masks))
    last = talk(Stub(right), exact, clicks=2, mask_rounds=0)[-1]
    assert (last.prompts.labels[:, 2:] == IGNORED).all()


def test_first_prompts_are_clicks_or_boxes() -> None:
    torch.manual_seed(0)
    some = objects(200)
    for share in (0.0, 1.0, 0.5):
        first = talk(Stub(), some, clicks=1, mask_rounds=0, box_share=share)[0].prompts
        boxed = first.labels[:, 0] == TOP_LEFT
        assert float(boxed.float().mean()) == pytest.approx(share, abs=0.12 if share == 0.5 else 0)
        assert (first.labels[boxed, 1] == BOTTOM_RIGHT).all()
        assert (first.labels[~boxed] == torch.tensor([1, NOT_A_POINT])).all()
        x, y = first.points[~boxed, 0].long().unbind(1)
        assert some.masks[~boxed][torch.arange(len(x)), y, x].all()


def small_sam() -> Sam:
    torch.manual_seed(0)
    model = create_sam("vit_nano_patch4_32", image_size=SIZE, embedding_stride=4, decoder_dim=16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_round_by_round_gives_the_gradients_of_all_at_once() -> None:
    model, some = small_sam(), objects(4)
    embeddings = torch.randn(2, 16, 4, 4, requires_grad=True)
    found = []
    for at_once in (True, False):
        torch.manual_seed(1)
        model.zero_grad()
        embeddings.grad = None
        losses = []
        for answers in training_rounds(model, embeddings, some, clicks=2, mask_rounds=1, box_share=0.5):
            loss = torch.stack([a.output.masks.square().mean() + a.output.scores.sum() for a in answers]).sum()
            losses.append(loss) if at_once else loss.backward()
        if at_once:
            torch.stack(losses).sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        assert embeddings.grad is not None
        found.append({**gradients, "embeddings": embeddings.grad})
    assert set(found[0]) == set(found[1])
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])


def test_an_evaluation_is_the_same_every_time_and_for_each_object_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, some = small_sam(), objects(5)
    one_image = some._replace(image_index=torch.zeros(5, dtype=torch.int64))
    embedding = torch.randn(1, 16, 4, 4)
    whole = evaluate_prompts(model, embedding, one_image, clicks=5, keep_masks=True)
    torch.rand(3)  # it draws nothing
    again = evaluate_prompts(model, embedding, one_image, clicks=5)
    assert again.click_masks is None
    assert torch.equal(whole.click_ious, again.click_ious)
    assert torch.equal(whole.points, again.points)
    monkeypatch.setattr(prompting, "OBJECTS_AT_ONCE", 2)
    parts = evaluate_prompts(model, embedding, one_image, clicks=5, keep_masks=True)
    assert whole.click_masks is not None
    assert parts.click_masks is not None
    assert whole.click_masks.shape == parts.click_masks.shape == (5, 5, SIZE, SIZE)
    assert torch.equal(whole.points, parts.points)
    assert torch.equal(whole.boxes, parts.boxes)
    torch.testing.assert_close(whole.click_ious, parts.click_ious)


def test_evaluation_does_not_see_padding() -> None:
    some = objects(2)
    everywhere = Stub(torch.full((2, LOW, LOW), 5.0))
    answers = evaluate_prompts(cast(Sam, everywhere), torch.zeros(1, 1, 1, 1), some, clicks=5)
    inside = some.valid[0].sum()
    torch.testing.assert_close(answers.click_ious[:, 0], 16 / inside.expand(2))
    x, y = answers.points[:, 1].long().unbind(1)
    assert some.valid[torch.arange(2), y, x].all(), "the second click is on the largest error, inside the image"
