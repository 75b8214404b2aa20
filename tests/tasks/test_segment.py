"""Promptable segmentation: gradients, frozen encoders and their cache, hand-over, text, resume, results."""

from __future__ import annotations

import csv
import os
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_run import Kill, Killed, fit_quietly, take
from torch import Tensor

from visionzoo.cache import Cache
from visionzoo.data.segment import SegmentData
from visionzoo.inference.sam_predictor import SamPredictor
from visionzoo.losses.segmentation import prompt_loss
from visionzoo.models.bundle import load_bundle, save_bundle
from visionzoo.models.clip.image import set_activation
from visionzoo.models.sam import Sam
from visionzoo.runs import RunFolder
from visionzoo.tasks.engine.sheets import Sheets
from visionzoo.tasks.mae import MaeTask
from visionzoo.tasks.prompting import Objects, training_rounds
from visionzoo.tasks.segment import SegmentTask
from visionzoo.types import SegmentBatch

SMALL: dict[str, Any] = {
    "backbone": "vit_nano_patch4_32",
    "image_size": 32,
    "embedding_stride": 8,
    "decoder_dim": 16,
    "clicks": 1,
    "mask_rounds": 1,
    "encoder": "full",
    "embedding_cache": "off",
    "lr": 2e-3,
}


def task(**options: Any) -> SegmentTask:
    torch.manual_seed(0)
    return SegmentTask(**{**SMALL, **options})


def data(**options: Any) -> SegmentData:
    given = {"shapes_size": 32, "batch_size": 4, "num_workers": 0, "val_fraction": 0.0}
    return SegmentData("shapes:8", **{**given, **options})


def batch_of(module: SegmentTask, **options: Any) -> SegmentBatch:
    source = data(**options)
    source.preprocess = module.preprocess
    return next(iter(source.train_dataloader()))


def fit(module: SegmentTask, folder: Path, resume: Path | None = None, **trainer: Any) -> pl.Trainer:
    return fit_quietly(module, data(), folder, resume, **{"limit_val_batches": 0, **trainer})


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    from visionzoo.models.bundle import ModelConfig
    from visionzoo.models.clip import create_clip

    torch.manual_seed(0)
    clip = create_clip(backbone="vit_nano_patch4_32", text="nano", context_length=16)
    folder = tmp_path_factory.mktemp("runs") / "clip"
    save_bundle(clip, ModelConfig(task="clip", architecture=clip.architecture, preprocess=clip.preprocess), folder)
    return str(folder)


# ---- training -------------------------------------------------------------------------------------------------------


def test_bf16_with_clipped_gradients_trains_around_a_cnn(tmp_path: Path) -> None:
    """Antialiased resizing has no bfloat16 on a CPU, and Lightning clips no fused optimizer under AMP."""
    module = task(backbone="timm/lcnet_050", image_size=64)
    before = {name: p.detach().clone() for name, p in module.model.named_parameters()}
    fit(module, tmp_path, precision="bf16-mixed", gradient_clip_val=1.0, max_epochs=1)
    changed = [name for name, p in module.model.named_parameters() if not torch.equal(p, before[name])]
    assert any(name.startswith("image_encoder.neck") for name in changed)
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encoder": "lora", "lora_rank": 2},
        {"encoder": "frozen"},
        {"encoder": "frozen", "fixed_images": True},
        {"backbone": "swin_nano_patch2_window4_32", "encoder": "lora"},
        {"backbone": "swin_nano_patch2_window4_32"},
        {"backbone": "timm/convnext_atto", "embedding_stride": None},
        {"conv_stem": True},
        {"clicks": 0},
        {"mask_rounds": 0, "box_share": 0.0},
        {"grad_checkpointing": True},
    ],
    ids=str,
)
def test_everything_that_trains_gets_a_gradient_in_every_step(options: dict[str, Any]) -> None:
    module = task(**options).train()
    batch = batch_of(module)
    nothing = batch._replace(masks=batch.masks[:0], image_index=batch.image_index[:0], names=())
    for some in (batch, nothing):
        module.zero_grad(set_to_none=True)
        assert torch.isfinite(take(module, some).loss)
        for name, parameter in module.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
    if module.encoder != "full":
        trained = {n for n, p in module.model.named_parameters() if p.requires_grad}
        allowed = ("prompt_encoder.", "mask_decoder.", "image_encoder.neck.")
        assert all(n.startswith(allowed) or ".lora_" in n for n in trained)
        assert any(".lora_" in n for n in trained) == (module.encoder == "lora")


def test_metas_encoder_is_frozen_with_its_neck() -> None:
    module = task(backbone="vit_b", image_size=64, embedding_stride=None, decoder_dim=None, encoder="frozen").train()
    assert not any(p.requires_grad for p in module.model.image_encoder.parameters())
    assert not any(m.training for m in module.model.image_encoder.modules())
    assert module.model.mask_decoder.training
    embedding = module.embed(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert not embedding.requires_grad


def test_a_frozen_backbone_does_not_change_and_its_neck_does(tmp_path: Path) -> None:
    module = task(encoder="frozen", drop_path=0.5, backbone="timm/resnet10t", embedding_stride=None)
    before = {k: v.clone() for k, v in module.model.image_encoder.state_dict().items()}
    fit(module, tmp_path)
    for name, tensor in module.model.image_encoder.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith("neck."), name


def test_the_loss_is_the_mean_over_all_answers() -> None:
    module = task(clicks=2)
    batch = batch_of(module)
    torch.manual_seed(5)
    step = take(module, batch)
    torch.manual_seed(5)
    embeddings = module.model.encode(module.normalize(batch.images))
    rounds = training_rounds(module.model, embeddings, Objects.of(batch), clicks=2, mask_rounds=1, box_share=0.5)
    targets = torch.nn.functional.interpolate(batch.masks[:, None].float(), (16, 16), mode="area")
    values = []
    for answer in chain.from_iterable(rounds):
        for k, row in enumerate(answer.rows.tolist()):
            masks, scores = answer.output.masks[k : k + 1], answer.output.scores[k : k + 1]
            values.append(prompt_loss(masks, scores, targets[row : row + 1]).total)
    assert len(values) > 4 * len(batch.masks)
    torch.testing.assert_close(step.loss, torch.stack(values).mean())


@pytest.mark.long
def test_it_learns(tmp_path: Path) -> None:
    module = task(lr=5e-3)
    batch = batch_of(module)
    with torch.no_grad():
        torch.manual_seed(1)
        before = take(module, batch)
        fit(module, tmp_path, max_epochs=15)
        torch.manual_seed(1)
        after = take(module, batch)
    assert after.loss < 0.85 * before.loss  # thirty steps: that masks are found is the slow test at the end
    assert after.logs["focal"] < 0.8 * before.logs["focal"]


@pytest.mark.long
def test_resume_is_bit_equal(tmp_path: Path) -> None:
    options = {"encoder": "lora", "drop_path": 0.2}
    whole, cut, resumed = task(**options), task(**options), task(**options)
    fit(whole, tmp_path / "whole", max_epochs=3)
    run = RunFolder(tmp_path / "cut")
    with pytest.raises(Killed):
        fit(cut, run.path, max_epochs=3, callbacks=[Kill(4)], every_n_steps=3)
    assert torch.load(run.last, weights_only=True)["global_step"] == 3  # in the second epoch of two steps
    fit(resumed, run.path, resume=run.last, max_epochs=3)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


# ---- the cache ------------------------------------------------------------------------------------------------------


def cache_of(module: SegmentTask) -> Cache | None:
    assert module.frozen is not None
    return module.frozen.cache


@pytest.mark.long
def test_a_cached_run_is_the_run_without_a_cache_bit_by_bit(tmp_path: Path) -> None:
    runs = {}
    for name, cache in (("off", "off"), ("cold", str(tmp_path / "cache")), ("warm", str(tmp_path / "cache"))):
        module = task(encoder="frozen", fixed_images=True, embedding_cache=cache)
        fit(module, tmp_path / name)
        runs[name] = module
    off, cold, warm = runs.values()
    assert cache_of(off) is None
    for module, misses, hits in ((cold, 8, 8), (warm, 0, 16)):
        cache = cache_of(module)
        assert cache is not None
        assert (cache.misses, cache.hits) == (misses, hits)
    for name, tensor in off.state_dict().items():
        assert torch.equal(tensor, cold.state_dict()[name]), name
        assert torch.equal(tensor, warm.state_dict()[name]), name


def test_embeddings_belong_to_the_weights_that_made_them(tmp_path: Path) -> None:
    module = task(encoder="frozen", fixed_images=True, embedding_cache=str(tmp_path)).eval()
    images = batch_of(module).images
    first = module.embed(images)
    state = {k: v + 0.1 if "blocks" in k else v for k, v in module.state_dict().items()}
    module.load_state_dict(state)
    module.setup("fit")  # as Lightning does before it restores a checkpoint
    assert not torch.equal(module.embed(images), first)
    assert len(list(tmp_path.iterdir())) == 2 * len(images)
    module.use_model(module.model)
    assert cache_of(module) is None


def test_embeddings_belong_to_the_model_around_the_weights(tmp_path: Path) -> None:
    """The same weights under another activation, as ``*_clip_224`` and ``*_clip_quickgelu_224`` are."""
    modules = [task(encoder="frozen", fixed_images=True, embedding_cache=str(tmp_path)).eval() for _ in range(2)]
    set_activation(modules[1].model.backbone, "quick_gelu")
    images = batch_of(modules[0]).images
    for module in modules:
        for image, kept in zip(images, module.embed(images), strict=True):
            fresh = module.model.image_encoder.join(module._frozen_maps(image[None]), image[None])[0]
            torch.testing.assert_close(kept, fresh)
        cache = cache_of(module)
        assert cache is not None
        assert cache.hits == 0


def test_a_damaged_cache_is_mended_and_a_full_disk_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = task(encoder="frozen", fixed_images=True, embedding_cache=str(tmp_path)).eval()
    images = batch_of(module).images
    good = module.embed(images)
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:20])
    with pytest.warns(UserWarning, match="is damaged"):
        assert torch.equal(module.embed(images), good)
    assert torch.equal(module.embed(images), good)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.warns(UserWarning, match=r"no more embeddings are kept.*No space left") as caught:
        assert torch.equal(module.embed(images), good)
    assert len(caught) == 1
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_a_person_should_know_is_said_first(tmp_path: Path) -> None:
    assert "the frozen encoder has random weights" in task(encoder="frozen").opening_line
    assert "runs in every step, since images vary" in task(encoder="frozen").opening_line
    kept = task(encoder="frozen", fixed_images=True, embedding_cache=str(tmp_path)).opening_line
    assert f"are kept in {tmp_path}" in kept
    assert not task().opening_line
    assert data().fixed_images
    assert not data(hflip=0.5).fixed_images
    assert not data(crop="scale_jitter").fixed_images


def test_few_views_are_embedded_once_each(tmp_path: Path) -> None:
    """Two random views of each image in turn: four epochs compute what two do, and train as without a cache."""
    views = {"crop": "random_resized", "hflip": 0.5, "fixed_views": 2}
    assert data(**views).fixed_images
    runs = {}
    for name, cache in (("every step", "off"), ("kept", str(tmp_path / "cache"))):
        runs[name] = task(encoder="frozen", fixed_images=True, embedding_cache=cache)
        fit_quietly(runs[name], data(**views), tmp_path / name, max_epochs=4, limit_val_batches=0)
    for name, tensor in runs["kept"].state_dict().items():
        assert torch.equal(tensor, runs["every step"].state_dict()[name]), name
    found = cache_of(runs["kept"])
    assert found is not None
    assert found.misses == found.hits > 0


# ---- evaluation -----------------------------------------------------------------------------------------------------


def scores(module: SegmentTask, loader: SegmentData) -> dict[str, Tensor]:
    loader.preprocess = module.preprocess
    with torch.no_grad():
        for batch in loader.val_dataloader():  # type: ignore[union-attr]
            module.update_evaluation(batch)
    return module.finish_evaluation()


def test_scores_do_not_depend_on_batches() -> None:
    module = task().eval()
    kwargs = {"val_fraction": None, "eval_masks_per_image": 3}
    found = [scores(module, _few(data(eval_batch_size=size, **kwargs))) for size in (1, 3)]
    assert set(found[0]) == {"iou_1", "iou_3", "iou_5", "iou_box", "clicks_85", "clicks_90"}
    assert found[0] == found[1]


def _few(loader: SegmentData) -> SegmentData:
    from visionzoo.data.sources.split import limited

    assert loader.val_source is not None
    loader.val_source = limited(loader.val_source, 6, 0)
    return loader


def test_images_without_objects_are_no_fault(tmp_path: Path) -> None:
    module = task().eval()
    batch = batch_of(module)
    bare = batch._replace(masks=batch.masks[:0], image_index=batch.image_index[:0], names=())
    module.update_evaluation(bare)
    assert module.finish_evaluation() == {}
    assert module.summary({}) == "no objects to score"
    assert module.prediction_rows(module.predict_step(bare, 0)) == [("0", "", "", "", "")] * 4
    with Image.open(module.draw_sheet(bare, tmp_path / "sheet.png")) as picture:
        assert picture.width > 100
    mixed = batch._replace(
        masks=batch.masks[batch.image_index == 2], image_index=batch.image_index[batch.image_index == 2],
        names=tuple(n for n, b in zip(batch.names, batch.image_index.tolist(), strict=True) if b == 2),
    )  # fmt: skip
    rows = module.predict_step(mixed, 0)
    assert [row[0] for row in rows] == ["0", "0", str(len(mixed.masks)), "0"]


# ---- what comes out -------------------------------------------------------------------------------------------------


def test_whether_clicks_are_ambiguous_stays_with_the_model(tmp_path: Path) -> None:
    assert task().model.ambiguous
    save_bundle(*task(ambiguous=False).export_model(), tmp_path)
    model, _ = load_bundle(tmp_path)
    assert isinstance(model, Sam)
    assert not model.ambiguous
    assert not SegmentTask(weights=str(tmp_path)).model.ambiguous
    assert SegmentTask(weights=str(tmp_path), ambiguous=True).model.ambiguous


def test_frequencies_are_raised_once_and_stay_with_the_weights(tmp_path: Path) -> None:
    def frequencies(module: SegmentTask | Sam) -> Tensor:
        model = module if isinstance(module, Sam) else module.model
        return model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix

    first = task()
    drawn = frequencies(first).clone()
    torch.testing.assert_close(frequencies(task(position_scale=2.0)), 2 * drawn)
    save_bundle(*first.export_model(), tmp_path / "first")
    second = SegmentTask(weights=str(tmp_path / "first"), position_scale=1.5)
    torch.testing.assert_close(frequencies(second), 1.5 * drawn)
    save_bundle(*second.export_model(), tmp_path / "second")
    again, _ = load_bundle(tmp_path / "second")
    assert isinstance(again, Sam)
    assert torch.equal(frequencies(again), frequencies(second))
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"position_scale=.* must be a positive number"):
            task(position_scale=wrong)


def test_adapters_are_merged_in_what_is_exported(tmp_path: Path) -> None:
    module = task(encoder="lora", lr=2e-2)
    fit(module, tmp_path / "run")
    module.eval()
    model, config = load_bundle(tmp_path / "run")
    assert isinstance(model, Sam)
    assert config.task == "segment"
    assert set(model.state_dict()) == {
        k.replace(".base_layer", "") for k in module.model.state_dict() if ".lora_" not in k
    }
    image = module.normalize(batch_of(module).images)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(image), module.model.encode(image), rtol=1e-4, atol=1e-4)
        plain = task().model.encode(image)
    assert not torch.allclose(model.encode(image), plain, atol=1e-2), "the adapters did something"
    folder = RunFolder(tmp_path / "run")
    module.use_exported(folder)
    assert torch.equal(module.embed(batch_of(module).images), model.encode(image))


@pytest.mark.long
def test_the_command_from_start_to_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from visionzoo.cli.train import run

    shared = ["--data.path", "shapes:8", "--data.shapes_size", "32", "--data.num_workers", "0"]
    small = [x for k, v in SMALL.items() for x in (f"--model.{k}", str(v))]
    folder = str(tmp_path / "run")
    options = ["--data.batch_size", "4", "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "1"]
    assert run(["segment", "fit", *shared, *small, *options, "--run_dir", folder]) == 0
    said = capsys.readouterr().out
    assert "k parameters, all of them trained" in said
    assert "peak memory after the first step" in said
    assert "after 1/3/5 clicks" in said
    names = {p.name for p in Path(folder).iterdir()}
    assert {"model.safetensors", "config.json", "masks.png", "sheets", "curves.png", "metrics.csv"} <= names
    assert [p.name for p in (Path(folder) / "sheets").glob("*.png")] == ["step_0000002.png"]

    predictor = SamPredictor.load(folder)
    predictor.set_image(Image.new("RGB", (40, 30)))
    masks, _, _ = predictor.predict(point_coords=[[5, 5]], point_labels=[1])  # type: ignore[arg-type]
    assert masks.shape == (3, 30, 40)

    where = str(tmp_path / "predictions")
    options = ["--trainer.limit_predict_batches", "1", "--data.batch_size", "3"]
    assert run(["segment", "predict", *shared, "--model.weights", folder, *options, "--run_dir", where]) == 0
    with (Path(where) / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert list(rows[0]) == ["image", "objects", "iou_1", "iou_3", "iou_5", "iou_box"]


def test_a_sheet_is_drawn_after_every_epoch(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    module = task()
    (sheets,) = module.run_callbacks()
    assert isinstance(sheets, Sheets)
    sheets.images = 2
    fit(module, tmp_path, callbacks=[sheets])
    assert sorted(p.name for p in run.sheets.glob("*.png")) == ["step_0000002.png", "step_0000004.png"]
    assert module.training


# ---- hand-over ------------------------------------------------------------------------------------------------------


def test_the_encoder_of_a_mae_run_arrives_bit_by_bit(tmp_path: Path) -> None:
    torch.manual_seed(3)
    mae = MaeTask(backbone="vit_nano_patch4_32", image_size=32, decoder_dim=32, decoder_depth=1, decoder_heads=2)
    save_bundle(*mae.export_model(), tmp_path / "mae")
    module = task(backbone=None, image_size=None, weights=str(tmp_path / "mae"), encoder="frozen")
    stored = load_file(tmp_path / "mae" / "model.safetensors")
    trunk = module.model.backbone.state_dict()
    assert set(trunk) == {k.removeprefix("encoder.") for k in stored if k.startswith("encoder.")}
    for name, tensor in trunk.items():
        assert torch.equal(tensor, stored[f"encoder.{name}"]), name
    assert module.opening_line.startswith(f"{len(trunk)} of {len(trunk)} tensors of the backbone (100.0%) loaded from")
    assert module.model.image_size == (32, 32)
    assert module.backbone_name == "vit_nano_patch4_32"
    with pytest.raises(ValueError, match="holds a run of the backbone vit_nano_patch4_32, not of swin_nano"):
        task(backbone="swin_nano_patch2_window4_32", weights=str(tmp_path / "mae"))


def test_the_encoder_of_a_clip_keeps_its_normalisation(clip_run: str) -> None:
    module = task(backbone=None, image_size=None, weights=clip_run)
    _, config = load_bundle(clip_run)
    assert (module.preprocess.mean, module.preprocess.std) == (config.preprocess.mean, config.preprocess.std)
    assert module.preprocess.resize_mode == "longest"
    assert module.preprocess.pad_value == tuple(round(255 * m) for m in config.preprocess.mean)
    assert "(100.0%)" in module.opening_line


def test_a_run_of_this_task_goes_on_whole(tmp_path: Path) -> None:
    first = task()
    save_bundle(*first.export_model(), tmp_path)
    second = SegmentTask(weights=str(tmp_path), encoder="full")
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    with pytest.raises(ValueError, match="holds a SAM of vit_nano_patch4_32, not of vit_b"):
        SegmentTask(weights=str(tmp_path), backbone="vit_b")
    with pytest.raises(ValueError, match="weights and backbone_weights are both given"):
        SegmentTask(weights=str(tmp_path), backbone_weights=str(tmp_path))


# ---- text -----------------------------------------------------------------------------------------------------------


def test_names_are_prompts(clip_run: str) -> None:
    module = task(text_model=clip_run).train()
    assert module.text_prompts is not None
    batch = batch_of(module)
    prompts, masks = module.text_prompts.of_batch(batch)
    assert prompts.image_index is not None
    pairs = list(dict.fromkeys(zip(batch.image_index.tolist(), batch.names, strict=True)))
    assert prompts.number == len(pairs)
    for (b, name), mask in zip(pairs, masks, strict=True):
        own = [m for m, i, n in zip(batch.masks, batch.image_index, batch.names, strict=True) if (i, n) == (b, name)]
        assert torch.equal(mask, torch.stack(own).any(dim=0))
    assert prompts.text is not None
    torch.testing.assert_close(prompts.text.norm(dim=1), torch.ones(len(pairs)))

    nameless = batch._replace(names=("",) * len(batch.names))
    for some in (batch, nameless):
        module.zero_grad(set_to_none=True)
        step = take(module, some)
        assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
        assert (float(step.logs["text"]) > 0) == (some is batch)
    module.eval()
    module.update_evaluation(batch)
    scores = module.finish_evaluation()
    assert "iou_text" in scores
    assert "against another name of the same picture" in module.summary({k: float(v) for k, v in scores.items()})
    module.update_evaluation(nameless)
    found = module.finish_evaluation()
    assert "iou_1" in found
    assert "iou_text" not in found
    assert "text_gain" not in found
    assert not any("text_prompts" in k for k in module.state_dict()), "the text tower is no part of a checkpoint"


def test_whether_a_name_is_listened_to_is_measured(clip_run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that finds what it is told, and one that finds the same whatever it is told."""
    module = task(text_model=clip_run).eval()
    assert module.text_prompts is not None
    batch = batch_of(module)
    truth = module.text_prompts.of_batch
    names = [len({n for n, i in zip(batch.names, batch.image_index.tolist(), strict=True) if i == b}) for b in range(4)]
    assert max(names) > 1
    perfect: list[Tensor] = []
    monkeypatch.setattr(module.text_prompts, "of_batch", lambda own: perfect.append(truth(own)[1]) or truth(own))
    monkeypatch.setattr(module, "_by_text", lambda *_: perfect[-1])
    module.update_evaluation(batch)
    assert module.finish_evaluation()["text_gain"] > 0.8
    monkeypatch.setattr(module, "_by_text", lambda *_: perfect[-1][:1].expand_as(perfect[-1]))
    module.update_evaluation(batch)
    assert module.finish_evaluation()["text_gain"] == 0


def test_names_are_put_into_the_template(clip_run: str) -> None:
    module = task(text_model=clip_run, text_template="a {}")
    assert module.text_prompts is not None
    clip = module.text_prompts.clip
    wanted = clip.encode_text(clip.tokenizer(["a red circle"]), normalize=True)
    torch.testing.assert_close(module.text_prompts.embed(["red circle"]), wanted)
    token = module.model.prompt_encoder.text_projection(module.text_prompts.embed(["red circle"]))
    assert 0.5 < float(token.std()) < 2, "as large as the token of a point"
    for template in ("a red circle", "a {} and a {}"):
        with pytest.raises(ValueError, match=r"must hold \{\} once"):
            task(text_model=clip_run, text_template=template)


def test_text_prompts_of_runs(clip_run: str, tmp_path: Path) -> None:
    spoken = task(text_model=clip_run)
    width = spoken.model.architecture["text_dim"]
    assert width == spoken.text_prompts.width  # type: ignore[union-attr]
    save_bundle(*spoken.export_model(), tmp_path / "spoken")
    model, config = load_bundle(tmp_path / "spoken")
    assert config.text_prompts == {"model": os.path.abspath(clip_run), "template": "a photo of a {}."}
    assert model.prompt_encoder.text_dim == width  # type: ignore[union-attr]

    silent = SegmentTask(weights=str(tmp_path / "spoken"), clicks=1, encoder="full").train()
    batch = batch_of(silent)
    take(silent, batch)
    assert all((p.grad is not None) == p.requires_grad for p in silent.parameters())
    assert not silent.model.prompt_encoder.text_projection.weight.requires_grad

    save_bundle(*task().export_model(), tmp_path / "plain")
    taught = SegmentTask(weights=str(tmp_path / "plain"), text_model=clip_run, encoder="full")
    assert taught.model.architecture["text_dim"] == width
    exported, _ = taught.export_model()
    save_bundle(exported, taught.export_model()[1], tmp_path / "taught")
    load_bundle(tmp_path / "taught")

    other = task(text_model=clip_run)
    other.model.add_text_prompts(7)
    save_bundle(*other.export_model(), tmp_path / "other")
    with pytest.raises(ValueError, match=f"takes text of width 7, and the text model gives {width}"):
        SegmentTask(weights=str(tmp_path / "other"), text_model=clip_run)
    with pytest.raises(ValueError, match="holds no CLIP"):
        task(text_model=str(tmp_path / "plain"))


# ---- bad options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"backbone": None}, "model.backbone is not given"),
        ({"encoder": "half"}, "encoder='half' is unknown; use frozen, lora or full"),
        ({"clicks": 0, "mask_rounds": 0}, "clicks=0 and mask_rounds=0"),
        ({"clicks": -1}, "clicks=-1"),
        ({"eval_clicks": 4}, "eval_clicks=4 must be at least 5"),
        ({"sheet_images": 0}, "sheet_images=0"),
        ({"box_share": 1.5}, r"box_share=1.5 must be in \[0, 1\]"),
        ({"layer_decay": 0.7}, "layer_decay=0.7"),
        ({"decoder_dim": 20}, "decoder_dim=20 must be a multiple of 16"),
        ({"embedding_stride": 5}, "does not divide into cells of 5"),
        (
            {"backbone": "vit_b", "image_size": 64, "embedding_stride": None, "decoder_dim": None, "conv_stem": True},
            "has a neck of its own, without room for one",
        ),
        ({"encoder": "lora", "lora_rank": 0}, "lora_rank=0"),
        ({"backbone": "timm/resnet10t", "encoder": "lora", "embedding_stride": None}, "has none"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        task(**options)


# ---- four images by heart -------------------------------------------------------------------------------------------


def overfit(source: SegmentData, steps: int, **options: Any) -> dict[str, float]:
    """Scores on four images after training on nothing else."""
    module = task(**options)
    source.preprocess = module.preprocess
    batch = next(iter(source.train_dataloader()))
    assert len(batch.images) == 4
    optimizer = torch.optim.AdamW(module.parameters(), lr=module.lr, weight_decay=0.0)
    for step in range(steps):
        module.train()
        for group in optimizer.param_groups:
            group["lr"] = module.lr * min(1, (step + 1) / 20) * (0.1 if step > 0.8 * steps else 1)
        take(module, batch)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    module.eval()
    with torch.no_grad():
        module.update_evaluation(batch)
    return {k: float(v) for k, v in module.finish_evaluation().items()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_four_pictures_of_shapes_can_be_learned_by_heart() -> None:
    source = SegmentData("shapes:4", shapes_size=32, batch_size=4, num_workers=0, val_fraction=0.0)
    found = overfit(source, 600, embedding_stride=4, decoder_dim=32, clicks=2)
    assert min(found["iou_1"], found["iou_3"], found["iou_5"], found["iou_box"]) > 0.9
