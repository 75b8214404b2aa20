from __future__ import annotations

import warnings

import numpy as np
import open_clip
import pytest
import torch
from open_clip import build_zero_shot_classifier
from torch.nn import functional as F

import visionzoo as vz
from visionzoo.data.images import open_image
from visionzoo.data.sources.templates import NAMED, VARIED_TEMPLATES, describe_templates, fill, resolve_templates
from visionzoo.data.transforms import EvalTransform
from visionzoo.models.bundle import ModelConfig, save_bundle
from visionzoo.models.preprocess import Normalize

LABELS = ["cat", "a very long and old dog", "zebra"]
TEMPLATES = ["a photo of a {}.", "one {} that somebody saw far away in a field.", "{}"]


def make_clip(loss="softmax", seed=0):
    torch.manual_seed(seed)
    model = vz.create_clip(backbone="vit_nano_patch4_32", text="nano", embed_dim=48, loss=loss)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


@pytest.fixture(scope="module")
def clip():
    return make_clip()


@pytest.fixture
def zs(clip):
    return vz.ZeroShotClassifier(clip, LABELS, TEMPLATES)


def image_features(model, photos):
    paths = sorted(p for p in photos.rglob("*") if p.suffix in (".png", ".jpg", ".webp", ".bmp", ".gif"))
    pixels = torch.stack([EvalTransform(model.preprocess)(open_image(p)) for p in paths])
    with torch.no_grad():
        return model.encode_image(Normalize(model.preprocess)(pixels), normalize=True)


def text_features(model, labels=LABELS, templates=TEMPLATES):
    """One prompt at a time, at the full context length."""
    rows = []
    for label in labels:
        with torch.no_grad():
            parts = [model.encode_text(model.tokenizer(t.format(label)), normalize=True)[0] for t in templates]
        mean = torch.stack(parts).mean(0)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


def test_probabilities_are_the_softmax_of_scaled_cosines(zs, clip, photos):
    expected = (clip.logit_scale.exp() * image_features(clip, photos) @ text_features(clip).T).softmax(1)
    assert expected.std(0).max() > 0.01
    for batch_size in (1, 4, 100):
        torch.testing.assert_close(zs.probabilities(photos, batch_size), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(zs.embed(photos), image_features(clip, photos), rtol=1e-5, atol=1e-5)


def test_text_embeddings_are_open_clips(clip, zs):
    weights = build_zero_shot_classifier(clip, clip.tokenizer, LABELS, TEMPLATES, num_classes_per_batch=2)
    torch.testing.assert_close(zs.text_embeddings, weights.T, rtol=1e-5, atol=1e-5)
    for batch_size in (1, 4):
        again = vz.ZeroShotClassifier(clip, LABELS, TEMPLATES, text_batch_size=batch_size)
        torch.testing.assert_close(again.text_embeddings, weights.T, rtol=1e-5, atol=1e-5)


def test_predict(zs, photos):
    probabilities = zs.probabilities(photos)
    for answer, row in zip(zs.predict(photos, top_k=2), probabilities, strict=True):
        best = row.argsort(descending=True)[:2].tolist()
        assert [label for label, _ in answer] == [LABELS[k] for k in best]
        assert [p for _, p in answer] == pytest.approx(row[best].tolist(), abs=1e-6)
    array = np.zeros((20, 30, 3), np.uint8)
    assert len(zs.predict([array, open_image(photos / "a.png"), photos / "b.jpg"])) == 3


def test_an_unreadable_image_is_named(zs, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"x\.png"):
        zs.predict(tmp_path / "x.png")
    with pytest.warns(UserWarning, match=r"1 of 1 images cannot be read.*x\.png"):
        assert zs.predict(tmp_path / "x.png", on_error="skip") == [None]


def test_adding_and_removing_labels_encodes_only_what_is_new(clip, photos):
    zs = vz.ZeroShotClassifier(clip, LABELS[:2], TEMPLATES)
    assert zs._cache.encoded == 6
    zs.add("zebra")
    assert zs._cache.encoded == 9
    assert zs.labels == tuple(LABELS)
    fresh = vz.ZeroShotClassifier(clip, LABELS, TEMPLATES)
    torch.testing.assert_close(zs.text_embeddings, fresh.text_embeddings)
    zs.remove("CAT")
    zs.add(["cat"])
    assert zs._cache.encoded == 9
    assert zs.labels == (*LABELS[1:], "cat")
    torch.testing.assert_close(zs.probabilities(photos)[:, 2], fresh.probabilities(photos)[:, 0])
    with pytest.raises(ValueError, match="no label 'horse'; there are a very long"):
        zs.remove("horse")
    with pytest.raises(ValueError, match="leaves no label"):
        zs.remove(LABELS)
    with pytest.raises(ValueError, match="'Cat' is there already, as 'cat'"):
        zs.add("Cat")
    assert zs.labels == (*LABELS[1:], "cat")


def test_the_cache_on_disk_belongs_to_weights_and_templates(clip, tmp_path):
    def encoded(model, templates=TEMPLATES, labels=LABELS):
        zs = vz.ZeroShotClassifier(model, labels, templates, cache_dir=tmp_path)
        return zs._cache.encoded, zs.text_embeddings

    first, weights = encoded(clip)
    again, stored = encoded(clip)
    assert (first, again) == (9, 0)
    assert torch.equal(weights, stored)
    assert encoded(clip, labels=[*LABELS, "crow"])[0] == 3
    assert encoded(clip, TEMPLATES[:1])[0] == 3
    assert encoded(make_clip(seed=1))[0] == 9
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged .* and is made again"):
        assert encoded(clip)[0] == 9
    assert encoded(clip)[0] == 0


def test_unknown(clip, zs, photos):
    best = zs.probabilities(photos).amax(1)
    threshold = float(best.median()) + 1e-4
    judged = vz.ZeroShotClassifier(clip, LABELS, TEMPLATES, unknown=threshold, unknown_label="none of these")
    for answer, plain, p in zip(judged.predict(photos), zs.predict(photos), best.tolist(), strict=True):
        if p >= threshold:
            assert answer == plain
        else:
            assert answer == [("none of these", pytest.approx(1 - p)), *plain]
    assert (best < threshold).any()
    assert (best >= threshold).any()
    with pytest.raises(ValueError, match=r"unknown=1\.5"):
        vz.ZeroShotClassifier(clip, LABELS, TEMPLATES, unknown=1.5)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_multi_label_scores_stand_alone(loss, photos):
    model = make_clip(loss)
    zs = vz.ZeroShotClassifier(model, LABELS, TEMPLATES, multi_label=True)
    cosines = image_features(model, photos) @ text_features(model).T
    scale = model.logit_scale.exp()
    if loss == "sigmoid":
        expected = (scale * cosines + model.logit_bias).sigmoid()
    else:
        neutral = image_features(model, photos) @ text_features(model, ["something"]).T
        expected = torch.stack([torch.stack((scale * c, scale * neutral[:, 0])).softmax(0)[0] for c in cosines.T], 1)
    torch.testing.assert_close(zs.probabilities(photos), expected, rtol=1e-4, atol=1e-6)
    alone = vz.ZeroShotClassifier(model, LABELS[:1], TEMPLATES, multi_label=True)
    torch.testing.assert_close(alone.probabilities(photos)[:, 0], expected[:, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "no labels"),
        (["cat", " "], "label 1 is empty"),
        (["cat", "dog", "Cat "], "'Cat ' is there already, as 'cat'"),
        (["a  cat", "a cat"], "is there already"),
        ("cat,dog", r"give a list, such as \['cat', 'dog'\]"),
        (["cat", 3], "label 1 is a int"),
    ],
)
def test_bad_labels(clip, labels, message):
    with pytest.raises(ValueError, match=message):
        vz.ZeroShotClassifier(clip, labels, TEMPLATES)


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "a {name}", "a {", "{0}"])
def test_a_template_has_one_place_for_the_label(clip, template):
    with pytest.raises(ValueError, match=r"must have one \{\}"):
        vz.ZeroShotClassifier(clip, LABELS, template)


def test_no_templates_at_all(clip):
    with pytest.raises(ValueError, match="templates is empty"):
        vz.ZeroShotClassifier(clip, LABELS, [])


def test_bare_words_and_a_single_label_are_warned_of(clip):
    with pytest.warns(UserWarning, match="bare words"):
        vz.ZeroShotClassifier(clip, ["cat", "wild dog"])
    with pytest.warns(UserWarning, match="every image has it with probability 1"):
        vz.ZeroShotClassifier(clip, ["cat"], "a photo of a {}.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vz.ZeroShotClassifier(clip, ["a photo of a cat", "a photo of a dog"])
        vz.ZeroShotClassifier(clip, ["cat", "dog"], "a photo of a {}.")


def test_labels_of_any_script_and_braces(clip):
    zs = vz.ZeroShotClassifier(clip, ["猫", "{dog}", "naïve café", "🦓"], "a photo of a {}.")
    assert torch.pdist(zs.text_embeddings).min() > 1e-3


def test_a_label_that_is_too_long_is_said(clip):
    with pytest.warns(UserWarning, match="1 of 2 prompts are longer than the 77 tokens"):
        vz.ZeroShotClassifier(clip, ["cat " * 100, "dog"], "a photo of a {}.")


def test_templates_by_name_are_the_published_ones_and_our_own():
    published = [t("cat") for t in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert [fill(t, "cat") for t in resolve_templates("imagenet")] == published
    assert len(published) == len(set(published)) == 80
    assert [fill(t, "cat") for t in resolve_templates("imagenet-simple")] == [
        t("cat") for t in open_clip.SIMPLE_IMAGENET_TEMPLATES
    ]
    assert resolve_templates("varied") == VARIED_TEMPLATES
    assert len(set(VARIED_TEMPLATES)) == 80
    assert resolve_templates(None) == ("{}",)


def test_the_ensemble_is_open_clips_classifier(clip):
    labels = ["cat", "a very long label of many words", "dog"]
    zs = vz.ZeroShotClassifier(clip, labels, "imagenet")
    theirs = open_clip.build_zero_shot_classifier(
        clip, clip.tokenizer, labels, open_clip.OPENAI_IMAGENET_TEMPLATES, num_classes_per_batch=2
    )
    torch.testing.assert_close(zs.text_embeddings, theirs.T, atol=1e-5, rtol=1e-5)


def test_templates_may_be_functions(clip, tmp_path):
    def article(label):
        return f"an {label}" if label[0] in "aeiou" else f"a {label}"

    written = {"ant": "an ant", "bee": "a bee"}
    zs = vz.ZeroShotClassifier(clip, list(written), [article, "one {}"], cache_dir=tmp_path)
    for label, row in zip(zs.labels, zs.text_embeddings, strict=True):
        own = clip.encode_text(clip.tokenizer([written[label], f"one {label}"]), normalize=True).mean(0)
        torch.testing.assert_close(row, torch.nn.functional.normalize(own, dim=0), atol=1e-5, rtol=1e-5)
    again = vz.ZeroShotClassifier(clip, list(written), [article, "one {}"], cache_dir=tmp_path)
    assert again._cache.encoded == 0  # what is kept is known by its sentences
    other = vz.ZeroShotClassifier(clip, list(written), [lambda c: f"the {c}", "one {}"], cache_dir=tmp_path)
    assert other._cache.encoded == 4
    assert vz.ZeroShotClassifier(clip, list(written), article).labels == ("ant", "bee")
    for bad in (lambda c: None, lambda c: "  ", 3):
        with pytest.raises(ValueError, match="must be a sentence, or give one for a label"):
            vz.ZeroShotClassifier(clip, LABELS, [bad])


@pytest.mark.parametrize(
    ("templates", "said"),
    [
        (None, "none"),
        *((name, name) for name in NAMED),
        (open_clip.OPENAI_IMAGENET_TEMPLATES, "imagenet"),
        ("my {}", "my {}"),
        (["my {}"], "my {}"),
        (["a {}", "b {}"], "2 of the caller's own"),
        (str.title, "1 of the caller's own"),
    ],
)
def test_what_results_say_of_templates(templates, said):
    assert describe_templates(templates) == said


def test_labels_that_are_codes_of_imagenet_get_their_names(clip):
    with pytest.warns(UserWarning, match="the labels are bare words"):
        zs = vz.ZeroShotClassifier(clip, ["n02123045", "dog"])
    assert zs.labels == ("tabby cat", "dog")
    zs.remove("n02123045")
    assert zs.labels == ("dog",)
    with pytest.raises(ValueError, match="'tabby cat' is there already"):
        vz.ZeroShotClassifier(clip, ["tabby cat", "n02123045"], "a {}")
    with pytest.warns(UserWarning, match="n99999999: codes of WordNet whose names are not known"):
        assert vz.ZeroShotClassifier(clip, ["n99999999", "a dog"], "a {}").labels == ("n99999999", "a dog")


def test_a_run_folder(clip, photos, tmp_path, zs):
    config = ModelConfig(task="clip", architecture=clip.architecture, preprocess=clip.preprocess, labels=("cat", "dog"))
    save_bundle(clip, config, tmp_path / "run")
    loaded = vz.ZeroShotClassifier.load(tmp_path / "run", LABELS, TEMPLATES, device="cpu")
    assert loaded.name == "run"
    torch.testing.assert_close(loaded.probabilities(photos), zs.probabilities(photos))
    assert vz.ZeroShotClassifier.load(tmp_path / "run", templates="a {}.", device="cpu").labels == ("cat", "dog")


def test_what_cannot_be_loaded(run_folder, tmp_path, clip):
    with pytest.raises(ValueError, match="task 'classify', not a CLIP"):
        vz.ZeroShotClassifier.load(run_folder, LABELS)
    with pytest.raises(FileNotFoundError):
        vz.ZeroShotClassifier.load(tmp_path / "nothing", LABELS)
    save_bundle(
        clip, ModelConfig(task="clip", architecture=clip.architecture, preprocess=clip.preprocess), tmp_path / "run"
    )
    with pytest.raises(ValueError, match="no labels of its own"):
        vz.ZeroShotClassifier.load(tmp_path / "run")
    with pytest.raises(ValueError, match="needs a model of create_clip, not Linear"):
        vz.ZeroShotClassifier(torch.nn.Linear(2, 2), LABELS)


def test_half_precision(clip, photos, zs):
    half = vz.ZeroShotClassifier(make_clip().bfloat16(), LABELS, TEMPLATES)
    assert F.cosine_similarity(half.embed(photos), zs.embed(photos)).min() > 0.99
