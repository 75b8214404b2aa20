"""Exported folders in the place of runs: the server answers as they do, and says what they cannot."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import visionzoo as vz
from visionzoo.data.sources.rle import read_segmentation
from visionzoo.export.plans import Wish, load_model, make_plan
from visionzoo.export.write import export_plan

pytest.importorskip("onnxruntime")
LABELS = ("a red circle", "a blue star", "a green cross")


def perturbed(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def clip() -> Any:
    torch.manual_seed(0)
    return perturbed(vz.create_clip(backbone="vit_nano_patch4_32", text="nano", context_length=16))


@pytest.fixture(scope="module")
def fixed(clip: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fixed") / "shapes"
    export_plan(make_plan(clip, Wish(labels=LABELS), "shapes"), out)
    return out


@pytest.fixture(scope="module")
def picture() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.long
def test_labels_of_an_exported_zero_shot_classifier_stay(
    clip: Any, fixed: Path, start: Callable[..., Any], picture: bytes
) -> None:
    server = start(clip=str(fixed))
    assert server.ask("GET", "/page/state").json()["clip"]["texts"] is False
    for labels in (LABELS, LABELS[:2]):
        wanted = vz.ZeroShotClassifier(clip, labels).predict(picture)[0]
        query = "&".join(f"label={label.replace(' ', '+')}" for label in labels)
        found = server.ask("POST", f"/v1/zeroshot?{query}", picture).json()["answers"]
        assert [a["label"] for a in found] == [label for label, _ in wanted]
        np.testing.assert_allclose([a["probability"] for a in found], [p for _, p in wanted], atol=1e-4)
    assert len(server.ask("POST", "/v1/zeroshot", picture).json()["answers"]) == len(LABELS)
    embedding = server.ask("POST", "/v1/embed", picture).json()["embedding"]
    np.testing.assert_allclose(embedding, vz.ZeroShotClassifier(clip, LABELS).embed([picture])[0], atol=1e-4)
    key = server.ask("POST", "/v1/pictures", picture).json()["id"]
    assert server.ask("POST", f"/page/search?picture={key}").json()["found"]
    for path in ("/v1/zeroshot?label=a+dragon", "/v1/embed?text=a+dragon", "/page/search?text=a+dragon"):
        answer = server.ask("POST", path, None if "zero" not in path else picture)
        assert (answer.status, "takes no other words" in answer.json()["error"]) == (400, True)
        assert "'a dragon'" in answer.json()["error"]
    answer = server.ask("POST", "/v1/zeroshot?template=my+%7B%7D", picture)
    assert (answer.status, "part of an export" in answer.json()["error"]) == (400, True)
    answer = server.ask("POST", "/v1/attention?model=clip", picture)
    assert (answer.status, "shows no attention" in answer.json()["error"]) == (400, True)


@pytest.mark.slow
def test_every_exported_model_answers_as_its_run(
    clip: Any, start: Callable[..., Any], tmp_path: Path, picture: bytes
) -> None:
    torch.manual_seed(0)
    models = {
        "classify": load_model("embedded:digits"),
        "clip": clip,
        "segment": perturbed(vz.create_sam("vit_nano_patch4_32", image_size=64)),
    }
    for name, model in models.items():
        export_plan(make_plan(model, Wish(), name), tmp_path / name)
    server = start(**{name: str(tmp_path / name) for name in models})
    wanted = models["classify"].predict(picture)[0]
    answers = server.ask("POST", "/v1/classify", picture).json()["answers"]
    np.testing.assert_allclose([a["probability"] for a in answers], [p for _, p in wanted], atol=1e-4)
    assert "An export has no answers" in server.ask("GET", "/page/confusion").json()["why"]

    assert server.ask("GET", "/page/state").json()["clip"]["texts"] is True
    labels = [*LABELS, "a new one"]
    zero = vz.ZeroShotClassifier(clip, labels, "a {}")
    query = "&".join(f"label={label.replace(' ', '+')}" for label in labels)
    answers = server.ask("POST", f"/v1/zeroshot?{query}&template=a+%7B%7D", picture).json()["answers"]
    assert [a["label"] for a in answers] == [label for label, _ in zero.predict(picture)[0]]
    np.testing.assert_allclose([a["probability"] for a in answers], [p for _, p in zero.predict(picture)[0]], atol=1e-4)
    assert server.ask("POST", "/page/search?text=a+red+circle").json()["found"]

    predictor = vz.SamPredictor(models["segment"])
    predictor.set_image(picture)
    sent = server.ask("POST", "/v1/pictures", picture).json()
    answer = server.ask("POST", f"/v1/masks?picture={sent['id']}&point=20,20").json()
    masks, scores, _ = predictor.predict(np.array([[20, 20]]), np.array([1]))
    mask = read_segmentation(answer["segmentation"], sent["height"], sent["width"]).mask()
    assert (mask != masks[scores.argmax()]).mean() < 1e-3
    options = {"points_per_side": 4, "min_iou": 0, "min_stability": 0}
    lines = server.ask("POST", f"/page/pictures/{sent['id']}/everything", options).body.splitlines()
    every = vz.MaskGenerator(models["segment"], 4, pred_iou_thresh=0, stability_score_thresh=0).generate(picture)
    assert len(json.loads(lines[-1])["masks"]) == sum(m["area"] > 0 for m in every)


def test_an_export_of_another_kind_says_what_it_is(fixed: Path, start: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="gives no masks"):
        start(segment=str(fixed))
    with pytest.raises(FileNotFoundError, match="runs/none"):
        start(clip="runs/none")
