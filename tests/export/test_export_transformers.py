"""Folders of transformers: its own pipeline gives our answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_models import perturbed

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.export.feeds import proof_images
from visionzoo.export.to_transformers import export_transformers
from visionzoo.inference.classifier import ImageClassifier


def _pipeline(folder: Path) -> list[str]:
    transformers = pytest.importorskip("transformers")
    pipe = transformers.pipeline("image-classification", model=str(folder))
    return [answer[0]["label"] for answer in pipe(proof_images(None)[0][:6])]


def test_the_pipeline_opens_a_run(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    export = ["export", str(run_folder), "--to", "transformers", "--out"]
    assert main([*export, str(out)]) == 0
    ours = ImageClassifier.load(run_folder, "cpu").predict(proof_images(None)[0][:6], top_k=1)
    assert _pipeline(out) == [answer[0][0] for answer in ours]
    again = ImageClassifier.from_model(
        vz.create_classifier("vit_nano_patch4_32", 4, weights=out), ["a", "b", "c", "d"], name="again"
    )
    assert again.preprocess == ImageClassifier.load(run_folder, "cpu").preprocess
    capsys.readouterr()
    assert main([*export, str(tmp_path / "b"), "--precision", "int8"]) == 2
    assert main([*export, str(out)]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_the_pipeline_gives_our_answers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = ImageClassifier.from_model(perturbed(vz.create_classifier(name, 3), 0.03), ["a", "b", "c"])  # type: ignore[arg-type]
    proof, _ = export_transformers(classifier, tmp_path / "out")
    assert max(row.difference for row in proof.rows) < 1e-5
    ours = classifier.predict(proof_images(None)[0][:6], top_k=1)
    assert _pipeline(tmp_path / "out") == [answer[0][0] for answer in ours]


def test_what_transformers_has_not_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vz.create_backbone("vit_small_patch16_rope_224", image_size=32)
    with pytest.raises(ValueError, match="transformers has no such network"):
        export_transformers(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_say_something_else_are_found(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visionzoo.export import to_transformers
    from visionzoo.export.failure import NotTheSame

    real = to_transformers.export_weights

    def spoilt(model: torch.nn.Module, path: Path, layout: str) -> None:
        with torch.no_grad():
            bias = model.get_parameter("head.bias")
            bias.add_(1)
            real(model, path, layout=layout)
            bias.sub_(1)

    monkeypatch.setattr(to_transformers, "export_weights", spoilt)
    with pytest.raises(NotTheSame, match="logits"):
        export_transformers(ImageClassifier.load(run_folder, "cpu"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
