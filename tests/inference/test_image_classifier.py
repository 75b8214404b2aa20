from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visionzoo as vz
from visionzoo.data.images import open_image
from visionzoo.data.transforms import EvalTransform
from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.models.classifier import Classifier
from visionzoo.models.preprocess import Normalize

LABELS = ("cat", "dog", "zebra")


@pytest.fixture(scope="module")
def classifier(run_folder: Path) -> vz.ImageClassifier:
    return vz.ImageClassifier.load(run_folder, device="cpu")


def slow_probabilities(model: Classifier, paths: list[Path]) -> torch.Tensor:
    """One image at a time, every step written out."""
    rows = []
    for path in paths:
        pixels = EvalTransform(model.preprocess)(open_image(path))
        with torch.no_grad():
            logits = model(Normalize(model.preprocess)(pixels[None]))[0]
        exponents = (logits - logits.max()).exp()
        rows.append(exponents / exponents.sum())
    return torch.stack(rows)


def test_probabilities_are_those_of_the_model(classifier: vz.ImageClassifier, model: Classifier, photos: Path) -> None:
    paths = sorted(p for p in photos.rglob("*") if p.suffix in (".png", ".jpg", ".webp", ".bmp", ".gif"))
    expected = slow_probabilities(model, paths)
    assert expected.std(0).max() > 0.01  # otherwise an order mixed up would not be seen
    for batch_size in (1, 4, 100):
        torch.testing.assert_close(classifier.probabilities(photos, batch_size), expected, rtol=1e-5, atol=1e-6)


def test_predict_ranks_the_labels(classifier: vz.ImageClassifier, photos: Path) -> None:
    predictions = classifier.predict(photos, top_k=2, batch_size=4)
    probabilities = classifier.probabilities(photos).tolist()
    assert len(predictions) == 6
    for prediction, row in zip(predictions, probabilities, strict=True):
        ranked = sorted(zip(LABELS, row, strict=True), key=lambda pair: -pair[1])[:2]
        assert [label for label, _ in prediction] == [label for label, _ in ranked]
        assert [p for _, p in prediction] == pytest.approx([p for _, p in ranked], abs=1e-6)
    assert [len(p) for p in classifier.predict(photos, top_k=100)] == [3] * 6


def test_every_form_of_an_image_gives_the_same(classifier: vz.ImageClassifier, photos: Path) -> None:
    path = photos / "a.png"
    image = Image.open(path)
    array, data = np.asarray(image), path.read_bytes()
    forms = [path, str(path), image, array, data, io.BytesIO(data), array.astype(np.float64) / 255]
    expected = classifier.probabilities(path)
    assert expected.shape == (1, 3)
    # one at a time: kernels may round differently for another batch size
    assert torch.equal(classifier.probabilities(forms, 1), expected.expand(len(forms), 3))
    assert torch.equal(classifier.probabilities(np.stack([array, array]), 1), expected.expand(2, 3))
    for form in forms[2:4]:
        assert classifier.predict(form) == classifier.predict([path])
    assert torch.equal(classifier.probabilities((p for p in [path, path]), 1), expected.expand(2, 3))


def test_folders_may_stand_among_images(classifier: vz.ImageClassifier, photos: Path) -> None:
    report = classifier.report([photos / "f.png", photos / "deep", np.zeros((9, 9, 3), np.uint8)])
    deep = photos / "deep"
    assert report.names == [str(photos / "f.png"), str(deep / "c.webp"), str(deep / "d.bmp"), "image 3"]


def test_embed_is_what_the_head_reads(classifier: vz.ImageClassifier, photos: Path) -> None:
    features = classifier.embed(photos, batch_size=4)
    assert features.shape == (6, classifier.model.pooled_dim)
    assert features.dtype == torch.float32
    with torch.no_grad():
        logits = classifier.model.get_classifier()(features)
    torch.testing.assert_close(logits.softmax(1), classifier.probabilities(photos), rtol=1e-5, atol=1e-6)


def test_unreadable_images(classifier: vz.ImageClassifier, photos: Path) -> None:
    bad = photos / "bad.jpg"
    bad.write_bytes((photos / "b.jpg").read_bytes()[:200])
    empty = photos / "empty.png"
    empty.write_bytes(b"")
    images = [photos / "a.png", bad, photos / "f.png", empty]
    with pytest.raises(ValueError, match=r"of 4 images cannot be read: .*bad\.jpg: .*on_error='skip'"):
        classifier.predict(images)
    for batch_size in (1, 2, 10):
        with pytest.warns(
            UserWarning, match=r"2 of 4 images cannot be read: .*bad\.jpg: .*empty\.png: empty: zero bytes"
        ):
            skipped = classifier.predict(images, batch_size=batch_size, on_error="skip")
        assert [p is None for p in skipped] == [False, True, False, True]
        good = classifier.predict([images[0], images[2]], batch_size=batch_size)
        assert [p[0][0] for p in good] == [skipped[0][0][0], skipped[2][0][0]]
    for method in (classifier.probabilities, classifier.embed):
        with pytest.raises(ValueError, match=r"bad\.jpg"):
            method(images)
    assert classifier.report([bad]).predictions == [None]


def test_multi_label_models_score_each_class(model: Classifier, tmp_path: Path, photos: Path) -> None:
    config = ModelConfig(
        task="classify", architecture=model.architecture, preprocess=model.preprocess, labels=LABELS, multi_label=True
    )
    save_bundle(model, config, tmp_path / "run")
    scores = vz.ImageClassifier.load(tmp_path / "run", device="cpu").probabilities(photos)
    single = vz.ImageClassifier.from_model(model, LABELS).probabilities(photos)
    torch.testing.assert_close((scores / (1 - scores)).log().softmax(1), single, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scores.sum(1), torch.ones(6))


def test_from_model_puts_it_in_eval_and_checks_labels(model: Classifier) -> None:
    assert not vz.ImageClassifier.from_model(model.train(), LABELS).model.training
    with pytest.raises(ValueError, match="2 labels do not fit a model with 3 classes"):
        vz.ImageClassifier.from_model(model, ["a", "b"])
    grey = vz.create_classifier("vit_nano_patch4_32", 3, in_chans=1)
    with pytest.raises(ValueError, match="takes 1 channels, its preprocessing gives 3"):
        vz.ImageClassifier.from_model(grey, LABELS)


def test_no_images_and_wrong_arguments(classifier: vz.ImageClassifier, tmp_path: Path) -> None:
    assert classifier.predict([]) == []
    assert classifier.probabilities([]).shape == (0, 3)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        classifier.predict(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no image or folder .*gone\.jpg"):
        classifier.predict([tmp_path / "gone.jpg"], on_error="skip")
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="top_k=0"):
        classifier.predict(image, top_k=0)
    with pytest.raises(ValueError, match="batch_size=0"):
        classifier.predict(image, batch_size=0)
    with pytest.raises(ValueError, match="on_error='ignore'"):
        classifier.predict(image, on_error="ignore")  # type: ignore[arg-type]


def test_load_errors(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"did you mean .*classify-pets-vit_nano\?"):
        vz.ImageClassifier.load(run_folder.with_name("classify-pets-vit_nan"))
    with pytest.raises(ValueError, match="is not a run folder"):
        vz.ImageClassifier.load(tmp_path)
    with pytest.raises(ValueError, match="device='gpu' is none that torch knows"):
        vz.ImageClassifier.load(run_folder, device="gpu")
    with pytest.raises(ValueError, match=r"device='cuda:99'.*use device='cpu'"):
        vz.ImageClassifier.load(run_folder, device="cuda:99")
    with pytest.raises(ValueError, match="no model 'resnet5000'"):
        vz.ImageClassifier.load("timm:resnet5000")


def test_timm_names_give_their_own_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the network: the weights come from timm itself, with random numbers."""
    import timm

    from visionzoo.inference import pretrained

    peer = timm.create_model("test_vit", num_classes=1000).eval()
    asked = []

    def create(backbone: str, num_classes: int, *, weights: str) -> torch.nn.Module:
        asked.append((backbone, weights))
        model = vz.create_classifier(backbone, num_classes)
        model.load_state_dict(peer.state_dict())
        return model

    monkeypatch.setattr(pretrained, "create_classifier", create)
    classifier = vz.ImageClassifier.load("timm:test_vit", device="cpu")
    assert asked == [("timm/test_vit.r160_in1k", "timm:test_vit.r160_in1k")]
    assert "tench" in classifier.labels[0]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 180, 3), dtype=np.uint8))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=peer))
    with torch.no_grad():
        expected = peer(transform(image)[None]).softmax(1)
    torch.testing.assert_close(classifier.probabilities(image), expected, rtol=1e-3, atol=1e-5)
