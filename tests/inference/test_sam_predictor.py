"""The predictor: Meta's answers, and what happens when something is wrong."""

import numpy as np
import pytest
import segment_anything
import torch
from PIL import Image
from sam_twins import NANO, SIZE, meta_sam, nano_sam, our_sam, picture

import visionzoo as vz
from visionzoo.inference import sam_predictor
from visionzoo.inference.sam_transform import fitted_size
from visionzoo.models.bundle import ModelConfig, save_bundle

PROMPTS = {
    "nothing": {},
    "click": {"point_coords": np.array([[40, 30]]), "point_labels": np.array([1])},
    "clicks": {"point_coords": np.array([[40.5, 30], [3, 2], [61, 90]]), "point_labels": np.array([1, 0, 1])},
    "box": {"box": np.array([5, 10, 55, 80])},
    "box beyond the image": {"box": np.array([-5, 10, 70, 95])},
    "box and clicks": {
        "box": np.array([5, 10, 55, 80]),
        "point_coords": np.array([[9, 9]]),
        "point_labels": np.array([0]),
    },
    "mask": {"mask_input": 3 * np.random.default_rng(0).normal(size=(1, SIZE // 4, SIZE // 4))},
}
PROMPTS["all"] = PROMPTS["box and clicks"] | PROMPTS["mask"]


@pytest.fixture(scope="module")
def predictors():
    """Meta's with their model, ours with ours, and Meta's with ours."""
    made = (
        segment_anything.SamPredictor(meta_sam()),
        vz.SamPredictor(our_sam()),
        segment_anything.SamPredictor(our_sam()),
    )
    for predictor in made:
        predictor.set_image(picture(90, 61))
    return made


@pytest.mark.parametrize("kind", list(PROMPTS))
@pytest.mark.parametrize("multimask", [True, False])
def test_answers_are_metas(predictors, kind, multimask):
    asked = {**PROMPTS[kind], "multimask_output": multimask}
    theirs, ours, crossed = (p.predict(**asked, return_logits=True) for p in predictors)
    for other in (ours, crossed):
        for a, b in zip(other, theirs, strict=True):
            assert a.shape == b.shape
            assert np.abs(a - b).max() < 1e-4
    binary = predictors[1].predict(**asked)[0]
    assert binary.dtype == bool
    assert np.array_equal(binary, ours[0] > 0)


def test_torch_calls_and_state_are_metas(predictors):
    theirs, ours, _ = predictors
    assert ours.is_image_set
    assert (ours.original_size, ours.input_size) == (theirs.original_size, theirs.input_size)
    assert torch.allclose(ours.get_image_embedding(), theirs.get_image_embedding(), atol=1e-4)
    resized = torch.from_numpy(picture(100, SIZE).copy()).permute(2, 0, 1)[None]
    points, labels = torch.rand(5, 2, 2) * 99, torch.ones(5, 2)
    answers = []
    for predictor in (segment_anything.SamPredictor(meta_sam()), vz.SamPredictor(our_sam())):
        predictor.set_torch_image(resized, (50, 128))
        answers.append(predictor.predict_torch(points, labels, return_logits=True))
    for a, b in zip(*answers, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() < 1e-4


def test_colours_and_forms_of_an_image(predictors, tmp_path):
    image = picture(40, 50)
    predictor = vz.SamPredictor(nano_sam())
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    found = []
    seen = np.dstack([image[..., ::-1], np.full(image.shape[:2], 255, np.uint8)])  # as cv2 reads a PNG with alpha
    forms = [(image, "RGB"), (image[..., ::-1], "BGR"), (Image.fromarray(image), "RGB"), (path, "RGB"), (seen, "BGR")]
    for form, order in [*forms, (torch.from_numpy(seen).permute(2, 0, 1), "BGR")]:
        predictor.set_image(form, order)
        found.append(predictor.features)
    assert all(torch.equal(x, found[0]) for x in found)
    predictor.set_image(image, "BGR")
    assert not torch.equal(predictor.features, found[0])


def test_several_images_are_held_and_each_answers_as_if_alone():
    predictor, images = vz.SamPredictor(nano_sam()), [picture(40, 50, 1), picture(64, 30, 2), picture(200, 100, 3)]
    predictor.set_images(images, batch_size=2)
    click = {"point_coords": np.array([[9, 9]]), "point_labels": np.array([1]), "return_logits": True}
    together = []
    for i in range(3):
        predictor.use_image(i)
        together.append(predictor.predict(**click))
    for image, answer in zip(images, together, strict=True):
        predictor.set_image(image)
        for a, b in zip(predictor.predict(**click), answer, strict=True):
            assert np.abs(a - b).max() < 1e-5
    with pytest.raises(IndexError, match="no image 1: 1 are set"):
        predictor.use_image(1)


@pytest.mark.parametrize("count", [700, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_prompts_go_in_chunks(count, monkeypatch):
    predictor = vz.SamPredictor(nano_sam(embedding_stride=16))
    predictor.set_image(picture(16, 16))
    points, labels = torch.rand(count, 1, 2) * 64, torch.ones(count, 1)
    sizes = []
    ask = predictor.model.ask
    monkeypatch.setattr(predictor.model, "ask", lambda c, p, m: (sizes.append(p.number), ask(c, p, m))[1])
    monkeypatch.setattr(sam_predictor, "CHUNK_BYTES", 2**23)
    masks, scores, low = predictor.predict_torch(points, labels, multimask_output=False)
    assert masks.shape == (count, 1, 16, 16)
    assert max(sizes) == 2**23 // (4 * 4 * 16 * 256)
    assert len(sizes) > 1
    assert sum(sizes) == count
    one = predictor.predict_torch(points[555:556], labels[:1], multimask_output=False)
    assert (low[555] - one[2][0]).abs().max() < 1e-5
    assert (scores[555] - one[1][0]).abs().max() < 1e-5


def test_many_clicks_on_one_object():
    predictor = vz.SamPredictor(nano_sam())
    predictor.set_image(picture(40, 50))
    coords = np.random.default_rng(0).uniform(0, 40, (3000, 2))
    masks, _, _ = predictor.predict(coords, np.ones(3000), return_logits=True)
    assert np.isfinite(masks).all()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"point_coords": [[50.5, 3]], "point_labels": [1]}, r"\(50.5, 3\) lies outside the image of 50x40"),
        ({"point_coords": [[3, -1]], "point_labels": [1]}, "outside the image"),
        ({"point_coords": [[np.nan, 1]], "point_labels": [1]}, "outside the image"),
        ({"point_coords": [[3, 1]], "point_labels": [2]}, "label 2 must be 1"),
        ({"point_coords": [[3, 1]]}, "need point_labels"),
        ({"point_labels": [1]}, "belong to point_coords"),
        ({"point_coords": [3, 1], "point_labels": [1]}, r"must be \(P, 2\) and \(P,\)"),
        ({"box": [30, 5, 10, 20]}, r"corners of box \(30, 5, 10, 20\) are swapped"),
        ({"box": [60, 5, 70, 20]}, "lies outside the image of 50x40"),
        ({"box": [1, 2, 3]}, "four finite numbers"),
        ({"mask_input": np.zeros((1, 32, 32))}, r"shape \(1, 32, 32\) must be \(1, 64, 64\)"),
        ({"mask_input": np.full((1, 64, 64), np.nan)}, "NaN"),
        ({"text": np.zeros(3)}, "takes no text prompts"),
    ],
)
def test_wrong_prompts_change_nothing(prompt, message):
    predictor = vz.SamPredictor(nano_sam())
    predictor.set_image(picture(40, 50))
    before = predictor.predict(return_logits=True)
    with pytest.raises(ValueError, match=message):
        predictor.predict(**prompt)
    assert all(np.array_equal(a, b) for a, b in zip(predictor.predict(return_logits=True), before, strict=True))


@pytest.mark.parametrize(
    ("images", "order", "message"),
    [
        ([np.zeros((0, 5, 3), np.uint8)], "RGB", "array of shape"),
        ([np.zeros((5, 5, 3), np.int64)], "RGB", "array of type int64"),
        ([picture(9, 9)], "HSV", "image_format='HSV'"),
        ([], "RGB", "0 images"),
        (["nowhere.png"], "RGB", "no such file"),
    ],
)
def test_after_a_failed_image_none_is_set(images, order, message):
    predictor = vz.SamPredictor(nano_sam())
    predictor.set_image(picture(40, 50))
    with pytest.raises(ValueError, match=message):
        predictor.set_images(images, order)
    assert not predictor.is_image_set
    for ask in (predictor.predict, predictor.get_image_embedding):
        with pytest.raises(RuntimeError, match="call set_image"):
            ask()


def test_before_and_after():
    predictor = vz.SamPredictor(nano_sam().train())
    assert not predictor.model.training
    with pytest.raises(RuntimeError, match="no image is set"):
        predictor.predict()
    predictor.set_image(picture(40, 50))
    predictor.reset_image()
    assert not predictor.is_image_set
    with pytest.raises(ValueError, match="with one side equal"):
        predictor.set_torch_image(torch.zeros(1, 3, 20, 20), (20, 20))


@pytest.mark.parametrize(
    ("original", "model", "size"),
    [
        ((100, 50), (64, 64), (64, 32)),
        ((1, 5000), (64, 64), (1, 64)),
        ((100, 100), (64, 96), (64, 64)),
        ((30, 90), (64, 96), (32, 96)),
    ],
)
def test_images_fit_into_any_input(original, model, size):
    assert fitted_size(original, model) == size


def test_square_inputs_resize_as_meta_does():
    resize = segment_anything.utils.transforms.ResizeLongestSide(SIZE)
    for height, width in np.random.default_rng(0).integers(20, 3000, (200, 2)).tolist():
        assert fitted_size((height, width), (SIZE, SIZE)) == resize.get_preprocess_shape(height, width, SIZE)


def test_from_a_run_folder(tmp_path):
    model = nano_sam()
    save_bundle(
        model, ModelConfig(task="segment", architecture=model.architecture, preprocess=model.preprocess), tmp_path
    )
    predictor = vz.SamPredictor.load(tmp_path, device="cpu")
    for one in (predictor, other := vz.SamPredictor(model)):
        one.set_image(picture(40, 50))
    assert torch.equal(predictor.features, other.features)
    classifier = vz.create_classifier(NANO, 3)
    folder = tmp_path / "classifier"
    config = ModelConfig(task="classify", architecture=classifier.architecture, preprocess=classifier.preprocess)
    save_bundle(classifier, config, folder)
    with pytest.raises(ValueError, match="task 'classify', not one for segmentation"):
        vz.SamPredictor.load(folder)
