"""Order, workers and bad images: what arrives in a batch does not depend on who read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionzoo.data.augment import AugmentOptions
from visionzoo.data.dataset import Collate, ImageDataset
from visionzoo.data.keys import sample_key
from visionzoo.data.loader import make_loader
from visionzoo.data.sampler import EvalBatches, ShardKeys, TrainBatches, TrainOrder
from visionzoo.data.sources.base import FilesSource, Source
from visionzoo.data.sources.folder import read_folder
from visionzoo.data.transforms import EvalTransform, TrainTransform
from visionzoo.types import ImageBatch, Preprocess

SPEC = Preprocess(image_size=(8, 8))


def train_loader(source: Source, *, start: tuple[int, int] = (0, 0), workers: int = 0, method=None, **order: object):
    dataset = ImageDataset(source, TrainTransform(SPEC, AugmentOptions(magnitude=10)), seed=5, substitute=True)
    batches = TrainBatches(TrainOrder(len(source), 4, seed=5, **order), lambda: start)  # type: ignore[arg-type]
    return make_loader(
        dataset, Collate(source, (3, 8, 8)), batch_sampler=batches, num_workers=workers, start_method=method
    )


def eval_loader(source: Source, batch_size: int = 4, rank: int = 0, world_size: int = 1):
    batches = EvalBatches(len(source), batch_size, rank, world_size)
    dataset = ImageDataset(source, EvalTransform(SPEC), seed=5)
    return make_loader(dataset, Collate(source, (3, 8, 8)), batch_sampler=batches)


def same(ours: list[ImageBatch], theirs: list[ImageBatch]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.index, b.index)
        and tuple(map(tuple, a.bad)) == tuple(map(tuple, b.bad))
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.fixture
def source(class_tree: Callable[..., Path]) -> FilesSource:
    return read_folder(str(class_tree({"cat": 9, "dog": 5, "eel": 4})))


def spoil(source: FilesSource, *positions: int) -> None:
    for i in positions:
        Path(source.raw(i)).write_bytes(b"")  # type: ignore[arg-type]


# Order


def test_the_hash_is_the_same_everywhere() -> None:
    assert sample_key(0, 0, 0) == 3114995060736091136
    assert len({sample_key(s, e, i) for s in range(3) for e in range(3) for i in range(100)}) == 900
    assert sample_key(1, 2) != sample_key(2, 1)


def test_ranks_together_see_what_one_process_sees() -> None:
    single = list(TrainOrder(103, 8, seed=1).batches(2))
    ranks = [list(TrainOrder(103, 4, seed=1, rank=r, world_size=2).batches(2)) for r in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == single
    assert len(single) == 12
    flat = [key for batch in single for key in batch]
    assert len(set(flat)) == 96
    assert {epoch for epoch, _ in flat} == {2}
    assert list(TrainOrder(103, 8, seed=1).batches(3)) != single
    assert list(TrainOrder(103, 8, seed=1).batches(2, start=5)) == single[5:]


def test_the_last_batch_is_dropped_or_shared_evenly() -> None:
    orders = [TrainOrder(21, 4, rank=r, world_size=2, drop_last=False) for r in (0, 1)]
    batches = [list(order.batches(0)) for order in orders]
    assert [len(b) for b in batches[0]] == [len(b) for b in batches[1]] == [4, 4, 3]
    assert {i for part in batches for batch in part for _, i, *_ in batch} == set(range(21))
    assert len(TrainOrder(21, 4)) == 5
    assert [len(b) for b in TrainOrder(3, 4).batches(0)] == [3], "fewer samples than a batch are one batch"
    tiny = [list(TrainOrder(1, 4, rank=r, world_size=3).batches(0)) for r in range(3)]
    assert tiny == [[[(0, 0)]], [[(0, 0, 1)]], [[(0, 0, 2)]]]


def test_balanced_sampling_evens_out_the_classes() -> None:
    targets = np.repeat([0, 1, 2], [900, 90, 10])
    order = TrainOrder(1000, 10, weights=(1 / np.bincount(targets))[targets])
    drawn = np.bincount(targets[order.order(0)])
    assert drawn.min() > 270
    with pytest.raises(ValueError, match="sampling weights"):
        TrainOrder(3, 1, weights=np.zeros(3))


def test_evaluation_sees_every_sample_once() -> None:
    shards = [list(EvalBatches(21, 10, r, 2)) for r in (0, 1)]
    assert [[len(b) for b in shard] for shard in shards] == [[10, 1], [10, 0]]
    assert sorted(i for shard in shards for batch in shard for _, i in batch) == list(range(21))
    assert [len(list(ShardKeys(21, r, 2))) for r in (0, 1)] == [11, 10]


# Workers


def test_batches_do_not_depend_on_workers(source: FilesSource) -> None:
    spoil(source, 3)
    alone = list(train_loader(source))
    assert [len(b.images) for b in alone] == [4, 4, 4, 4]
    assert alone[0].images.dtype == torch.uint8
    assert alone[0].labels.tolist() == [int(source.targets[i]) for i in alone[0].index]
    for workers in (1, 3):
        assert same(list(train_loader(source, workers=workers, method="fork")), alone)


@pytest.mark.long
def test_spawned_workers_give_the_same_batches_and_import_only_the_data_layer() -> None:
    from imported_modules import TellingSource

    source = TellingSource()
    spawned, alone = (list(train_loader(source, workers=w, method="spawn")) for w in (1, 0))
    assert [b.bad for b in spawned if b.bad] == [(("telling:7", "imported: nothing heavy"),)]
    assert [b.bad for b in alone if b.bad] != [b.bad for b in spawned if b.bad], "this process has imported pytest"
    assert same([b._replace(bad=()) for b in spawned], [b._replace(bad=()) for b in alone])


def test_no_handle_is_left_open_by_an_epoch(source: FilesSource) -> None:
    import os

    list(eval_loader(source))
    before = len(os.listdir("/proc/self/fd"))
    list(eval_loader(source))
    assert len(os.listdir("/proc/self/fd")) == before


# Bad images


def test_training_substitutes_the_same_image_every_time(source: FilesSource) -> None:
    good = list(train_loader(source))
    spoil(source, 2, 11)
    batches = list(train_loader(source))
    assert same(batches, list(train_loader(source)))
    bad = {name for batch in batches for name, _ in batch.bad}
    assert bad <= {source.sample_id(2), source.sample_id(11)}
    assert bad
    for clean, batch in zip(good, batches, strict=True):
        assert len(batch.images) == 4
        assert not {2, 11} & set(batch.index.tolist())
        kept = clean.index == batch.index
        assert torch.equal(clean.images[kept], batch.images[kept])
        assert int((~kept).sum()) == len({2, 11} & set(clean.index.tolist()))
        assert batch.labels.tolist() == source.targets[batch.index].tolist()
    assert all(reason == "empty: zero bytes" for batch in batches for _, reason in batch.bad)


def test_a_file_that_vanishes_is_a_bad_image(source: FilesSource) -> None:
    Path(source.raw(0)).unlink()  # type: ignore[arg-type]
    batch = next(iter(eval_loader(source)))
    assert batch.bad == ((source.sample_id(0), "no such file"),)


def test_evaluation_drops_and_says_so(source: FilesSource) -> None:
    spoil(source, 1, *range(4, 8))
    batches = list(eval_loader(source))
    assert [len(b.images) for b in batches] == [3, 0, 4, 4, 2]
    assert [len(b.bad) for b in batches] == [1, 4, 0, 0, 0]
    empty = batches[1]
    assert empty.images.shape == (0, 3, 8, 8)
    assert empty.images.dtype == torch.uint8
    assert empty.labels.shape == empty.index.shape == (0,)
    assert empty.labels.dtype == empty.index.dtype == torch.int64


def test_a_sample_drawn_again_is_another_key_and_another_view() -> None:
    weights = np.array([1.0, 1.0, 50.0])
    for world_size in (1, 2):
        orders = [TrainOrder(3, 40, weights=weights, rank=r, world_size=world_size) for r in range(world_size)]
        keys = [key for order in orders for batch in order.batches(0) for key in batch]
        assert len(set(keys)) == len(keys) >= 3
    keys = next(TrainOrder(40, 40, weights=np.eye(40)[0] + 1e-9, seed=3).batches(5))
    assert [k for k in keys if k[1] == 0] == [(5, 0), *((5, 0, n) for n in range(1, 40))]


def test_few_views_come_again_in_turn(source: FilesSource) -> None:
    dataset = ImageDataset(source, TrainTransform(SPEC, AugmentOptions()))
    new = [dataset[(epoch, 0)].value for epoch in range(4)]
    dataset.views = 2
    again = [dataset[(epoch, 0)].value for epoch in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(again, (*new[:2], *new[:2]), strict=True))
    assert not torch.equal(new[0], new[1])
    assert not torch.equal(new[0], new[2])
    with pytest.raises(ValueError, match="fixed_views=0 must be at least 1"):
        AugmentOptions(fixed_views=0)


def test_a_rank_without_samples_yields_empty_batches(source: FilesSource) -> None:
    last = list(eval_loader(source, batch_size=9, rank=16, world_size=17))
    assert [len(b.images) for b in last] == [1]
    spare = list(eval_loader(source, batch_size=1, rank=5, world_size=17))
    assert [len(b.images) for b in spare] == [1, 0]


def test_data_that_are_all_bad_end_with_examples(source: FilesSource) -> None:
    spoil(source, *range(len(source)))
    with pytest.raises(ValueError, match=r"33 images in a row could not be read.*empty: zero bytes"):
        next(iter(train_loader(source)))
    assert [len(b.images) for b in eval_loader(source)] == [0] * 5


def test_a_missing_label_is_a_bad_sample(source: FilesSource) -> None:
    source.targets[4] = -1
    batches = list(eval_loader(source))
    assert batches[1].bad == ((source.sample_id(4), "no label"),)
    assert min(int(b.labels.min()) for b in batches) == 0


def test_multi_label_batches(encode: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(0))
    targets = np.array([[1, 0, 1], [0, 0, 0]], dtype=np.float32)
    source = FilesSource(str(tmp_path), [b"a.png", b"a.png"], targets, ("x", "y", "z"), multi_label=True)
    batch = next(iter(eval_loader(source)))
    assert batch.labels.tolist() == targets.tolist()
    assert batch.labels.dtype == torch.float32
    (tmp_path / "a.png").write_bytes(b"")
    assert next(iter(eval_loader(source))).labels.shape == (0, 3)


def test_an_image_goes_in_whatever_its_mode(tmp_path: Path) -> None:
    modes = ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16")
    for k, mode in enumerate(modes):
        image = Image.fromarray(np.full((9, 7), 200, np.uint16 if mode == "I;16" else np.uint8))
        image = image if mode == "I;16" else image.convert(mode)
        image.save(tmp_path / f"{k}.{'tif' if mode == 'CMYK' else 'png'}")
    names = sorted(path.name.encode() for path in tmp_path.iterdir())
    source = FilesSource(str(tmp_path), names)
    (batch,) = eval_loader(source, batch_size=7)
    assert batch.images.shape == (7, 3, 8, 8)
    assert batch.labels.tolist() == [-1] * 7
