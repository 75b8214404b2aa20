"""Every image weighs the same in its optimizer step, whatever the number and the sizes of its batches."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accumulation_ranks import gradients, uneven
from tiny_run import tiny_data, tiny_task
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from visionzoo.data.clip import ClipData
from visionzoo.data.mae import MaeData
from visionzoo.data.segment import SegmentData
from visionzoo.tasks.clip import ClipTask
from visionzoo.tasks.mae import MaeTask
from visionzoo.tasks.segment import SegmentTask
from visionzoo.types import ImageBatch

pytestmark = pytest.mark.filterwarnings("ignore")
VIT = {"backbone": "vit_nano_patch4_32"}
STILL: dict[str, Any] = {"num_workers": 0, "crop": "resize", "hflip": 0.0}


def classify(images: int, size: int) -> tuple[Any, Any]:
    return tiny_task(), tiny_data(batch_size=size, train_limit=images, drop_last=False, policy="none", **STILL)


def mae(images: int, size: int) -> tuple[Any, Any]:
    torch.manual_seed(0)
    task = MaeTask(**VIT, image_size=16, decoder_dim=32, decoder_depth=1, decoder_heads=2)
    data = MaeData("digits", batch_size=size, train_limit=images, drop_last=False, **STILL)
    return task, data


def clip(images: int, size: int) -> tuple[Any, Any]:
    torch.manual_seed(0)
    task = ClipTask(**VIT, image_size=16, text="nano", text_width=32, text_heads=2, context_length=8)
    data = ClipData("shapes:60", batch_size=size, train_limit=images, drop_last=False, **STILL)
    return task, data


def segment(images: int, size: int) -> tuple[Any, Any]:
    torch.manual_seed(0)
    task = SegmentTask(
        **VIT, image_size=32, embedding_stride=8, decoder_dim=16, clicks=1, mask_rounds=1, encoder="full",
        embedding_cache="off",
    )  # fmt: skip
    data = SegmentData(
        "shapes:24",
        shapes_size=32,
        batch_size=size,
        train_limit=images,
        drop_last=False,
        num_workers=0,
        val_fraction=0.0,
    )
    return task, data


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("make", [classify, mae, clip, segment])
def test_the_last_window_is_the_mean_over_its_own_images(make: Callable[[int, int], tuple[Any, Any]]) -> None:
    alone = gradients(*make(20, 4))
    assert len(alone) == 5
    whole, rest = gradients(*make(20, 4), accumulate=4)
    assert_close(whole, torch.stack(alone[:4]).mean(0))
    assert_close(rest, alone[4])
    assert float(rest.abs().max()) > 0


@pytest.mark.parametrize("make", [classify, mae, clip])
def test_a_smaller_batch_counts_by_its_images(make: Callable[[int, int], tuple[Any, Any]]) -> None:
    a, b, c = gradients(*make(10, 4))
    (together,) = gradients(*make(10, 4), accumulate=4)
    assert_close(together, (4 * a + 4 * b + 2 * c) / 10)


@pytest.mark.parametrize("halve_on_oom", [True, False])
def test_it_holds_in_parts_and_by_lightnings_own_backward_pass(halve_on_oom: bool) -> None:
    a, b, c = gradients(*classify(10, 4))
    task, data = classify(10, 4)
    task.halve_on_oom = halve_on_oom
    task.take_step.size = 3
    (together,) = gradients(task, data, 4)
    assert_close(together, (4 * a + 4 * b + 2 * c) / 10)


class Endless(IterableDataset):
    """Batches of a set that does not know its length."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def __iter__(self) -> Iterator[ImageBatch]:
        generator = torch.Generator().manual_seed(0)
        for size in self.sizes:
            images = torch.randint(0, 256, (size, 3, 16, 16), dtype=torch.uint8, generator=generator)
            yield ImageBatch(images, torch.arange(size) % 10, torch.arange(size))


def test_a_set_of_unknown_length(recwarn: Any) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(Endless([4, 4, 4, 2]), batch_size=None)

    a, b, c, d = gradients(tiny_task(), loader(), max_steps=4)
    whole, rest = gradients(tiny_task(), loader(), 3, max_steps=2)
    assert_close(whole, (a + b + c) / 3)
    assert_close(rest, d)
    with pytest.raises(ValueError, match=r"do not know their length: give --trainer.max_steps"):
        gradients(tiny_task(), loader())
    with pytest.raises(ValueError, match="give warmup_steps instead"):
        gradients(tiny_task(warmup_epochs=1.0), loader(), max_steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ddp_takes_the_steps_of_one_process_alone(processes: int, tmp_path: Path) -> None:
    script = Path(__file__).with_name("accumulation_ranks.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run([*launch, script, tmp_path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = uneven(1)
    assert len(alone) == 2
    for rank in range(processes):
        for found in torch.load(tmp_path / f"rank{rank}.pt"):
            for ours, expected in zip(found, alone, strict=True):
                assert float((ours - expected).abs().max()) < 1e-10 * max(1.0, float(expected.abs().max()))


def test_a_run_that_goes_on_inside_a_window_takes_what_is_left_of_it() -> None:
    from types import SimpleNamespace

    from visionzoo.tasks.accumulation import Window

    progress = SimpleNamespace(is_last_batch=False)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    trainer: Any = SimpleNamespace(accumulate_grad_batches=4, num_training_batches=10, fit_loop=loop, optimizers=[])
    window = Window()
    assert [window.add(trainer, i, 8) for i in (5, 6, 7)] == [3.0, 3.0, 3.0]
    assert window.add(trainer, 8, 8) == 2.0
