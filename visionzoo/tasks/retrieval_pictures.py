"""Which retrievals of a held-out set are shown, and how far down the lists the right answers stand.

Legend: N images, M captions, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visionzoo.data.module import VisionData
from visionzoo.metrics.retrieval import retrieval_ranks
from visionzoo.runs.gallery import GalleryAbout, GalleryPicture
from visionzoo.tasks.pictures import as_webp, small_pictures

#: Images and captions that are asked about: evenly spaced ones, and those whose right answer came last.
SPACED, WORST = 8, 6
#: Answers of each.
CAPTIONS, IMAGES = 3, 5
#: Places of the curves, at most.
PLACES = 50


class RetrievalQuery(NamedTuple):
    """What was found for one image or one caption."""

    name: str  #: the caption
    position: int  #: of the image in its source; that of the caption's own
    rank: int  #: place of its right answer, from 1 on
    texts: Sequence[tuple[str, bool]]  #: captions found, best first, and whether right
    images: Sequence[tuple[int, bool]]  #: positions of images found


@dataclass(frozen=True)
class Retrievals:
    """Chosen ones, and the share of all that is right among the first places."""

    images: dict[str, list[RetrievalQuery]]  #: by how they were chosen
    texts: list[RetrievalQuery]
    curves: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]


def choose_retrievals(
    images: Tensor, texts: Tensor, owner: Tensor, positions: Tensor, groups: Tensor, words: Sequence[str]
) -> Retrievals:
    """Ask about some images and captions.

    Args:
        images: (N, E), of length one.
        texts: (M, E), of length one.
        owner: (M,) int64, the image of each caption.
        positions: (N,) int64, of the images in their source.
        groups: (M,) equal where the captions are.
        words: M captions.
    """
    order = owner.argsort(stable=True)  # that of the images, whatever batches and ranks
    texts, owner, groups, words = texts[order], owner[order], groups[order], [words[m] for m in order.tolist()]
    image_rank, text_rank = (rank + 1 for rank in retrieval_ranks(images, texts, owner, groups))
    kinds = torch.unique(groups, return_inverse=True)[1]
    first = {kind: m for m, kind in reversed(list(enumerate(kinds.tolist())))}
    one_of_each = torch.tensor(sorted(first.values()), device=texts.device)

    def of_image(i: int) -> RetrievalQuery:
        own = set(kinds[owner == i].tolist())
        best = one_of_each[(texts[one_of_each] @ images[i]).topk(min(CAPTIONS, len(one_of_each))).indices]
        found = [(words[m], int(kinds[m]) in own) for m in best.tolist()]
        return RetrievalQuery("", int(positions[i]), int(image_rank[i]), found, ())

    def of_text(m: int) -> RetrievalQuery:
        right = set(owner[kinds == kinds[m]].tolist())
        best = (images @ texts[m]).topk(min(IMAGES, len(images))).indices.tolist()
        found = [(int(positions[i]), i in right) for i in best]
        return RetrievalQuery(words[m], int(positions[owner[m]]), int(text_rank[m]), (), found)

    spaced, worst = _spaced(len(images)), image_rank.argsort(descending=True, stable=True)[:WORST].tolist()
    asked = {
        "From image to text": [of_image(i) for i in spaced],
        "From image to text, the right caption furthest down": [of_image(i) for i in worst if image_rank[i] > 1],
    }
    last = text_rank.argsort(descending=True, stable=True)[: 2 * WORST].tolist()
    chosen = dict.fromkeys([*(m for m in _spaced(len(texts))), *(m for m in last if text_rank[m] > 1)])
    different = list({int(kinds[m]): m for m in reversed(chosen)}.values())[::-1][: SPACED + WORST]
    curves = tuple((name, _curve(rank)) for name, rank in (("image to text", image_rank), ("text to image", text_rank)))
    return Retrievals(asked, [of_text(m) for m in different], curves)


def _spaced(count: int) -> list[int]:
    return torch.linspace(0, count - 1, min(SPACED, count)).round().long().tolist()


def _curve(ranks: Tensor) -> tuple[tuple[float, float], ...]:
    places = range(1, min(PLACES, int(ranks.max())) + 1)
    return tuple((float(k), 100 * float((ranks <= k).double().mean())) for k in places)


def retrieval_gallery(found: Retrievals, data: VisionData) -> tuple[list[GalleryPicture], GalleryAbout]:
    """The pictures of what was chosen, read from the held-out images once more."""
    read: dict[int, bytes | None] = {}
    pictures: list[GalleryPicture] = []

    def add(group: str, position: int, alt: str, lines: Sequence[tuple[str, str]]) -> None:
        if position not in read:
            read[position] = _picture(data, position)
        if (picture := read[position]) is not None:
            pictures.append(GalleryPicture(group, alt, lines, picture, position))

    for group, several in found.images.items():
        for one in several:
            lines = [(f"{'✓' if own else '✗'} {text}", "right" if own else "wrong") for text, own in one.texts]
            add(group, one.position, f"image {one.position}", [*lines, (f"right caption: place {one.rank:,}", "quiet")])
    for one in found.texts:
        group = f"“{one.name}”: the right image has place {one.rank:,}"
        for place, (position, own) in enumerate(one.images, 1):
            tone, mark = ("right", "✓") if own else ("wrong", "✗")
            add(group, position, f"image {position}, place {place} for: {one.name}", [(f"{mark} place {place}", tone)])
    about = GalleryAbout(
        section="Retrieval",
        note="Of all held-out captions and images, the most similar first. ✓ is right, ✗ is not.",
        curves_title="Right among the first places, in %",
        curves_x="places",
        curves=found.curves,
    )
    return pictures, about


def _picture(data: Any, position: int) -> bytes | None:
    dataset, collate = data.evaluation_set(data.val_source)
    images = collate([dataset[(0, position)]]).images
    return as_webp(small_pictures(images)[0]) if len(images) else None
