"""Programs written for Meta's SAM on ours: their transform, their ONNX model, and ``torch.export`` of the decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sam_twins import SIZE, meta_sam, our_sam, picture
from segment_anything.utils.onnx import SamOnnxModel
from segment_anything.utils.transforms import ResizeLongestSide
from torch import nn

import visionzoo as vz


@pytest.mark.parametrize("size", [(150, 256), (301, 97), (40, 60)])
def test_the_transform_is_metas(size: tuple[int, int]) -> None:
    ours, theirs = vz.SamPredictor(our_sam()).transform, ResizeLongestSide(SIZE)
    image = picture(*size)
    assert ours.target_length == theirs.target_length
    assert np.array_equal(ours.apply_image(image), theirs.apply_image(image))
    coords = np.random.default_rng(0).uniform(0, 40, (5, 3, 2))
    boxes = np.random.default_rng(1).uniform(0, 40, (5, 4))
    assert np.allclose(ours.apply_coords(coords, size), theirs.apply_coords(coords, size))
    assert np.allclose(ours.apply_boxes(boxes, size), theirs.apply_boxes(boxes, size))
    for name, values in (("apply_coords_torch", coords), ("apply_boxes_torch", boxes)):
        tensor = torch.from_numpy(values)
        torch.testing.assert_close(getattr(ours, name)(tensor, size), getattr(theirs, name)(tensor, size))
    assert ours.get_preprocess_shape(*size, 99) == theirs.get_preprocess_shape(*size, 99)
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    got = ours.apply_image_torch(pixels)[0].permute(1, 2, 0).numpy()
    assert np.abs(got - ours.apply_image(image)).max() < 2  # theirs takes batch and channels for height and width


@torch.no_grad()
def test_a_program_with_its_own_resizing_gets_the_predictors_answer() -> None:
    """The batched part of Meta's notebook."""
    predictor, image = vz.SamPredictor(our_sam()), picture(150, 220)
    resized = torch.from_numpy(predictor.transform.apply_image(image)).permute(2, 0, 1)[None]
    predictor.set_torch_image(resized, image.shape[:2])
    box = torch.tensor([[10.0, 20.0, 90.0, 120.0]])
    boxes = predictor.transform.apply_boxes_torch(box, image.shape[:2])
    masks, _, _ = predictor.predict_torch(None, None, boxes, multimask_output=False)
    predictor.set_image(image)
    same, _, _ = predictor.predict(box=box[0].numpy(), multimask_output=False)
    assert np.array_equal(masks[0].numpy(), same)


def questions(points: int) -> dict[str, torch.Tensor]:
    """What Meta's ONNX model is asked, with the names of its inputs."""
    g = torch.Generator().manual_seed(points)
    side = SIZE // 4
    return {
        "image_embeddings": torch.randn(1, 256, SIZE // 16, SIZE // 16, generator=g),
        "point_coords": torch.rand(1, points, 2, generator=g) * SIZE,
        "point_labels": torch.randint(-1, 4, (1, points), generator=g).float(),
        "mask_input": torch.randn(1, 1, side, side, generator=g),
        "has_mask_input": torch.tensor([float(points % 2)]),
        "orig_im_size": torch.tensor([150.0, 220.0]),
    }


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("points", [1, 2, 20])
def test_metas_onnx_model_computes_metas_numbers(single: bool, points: int) -> None:
    asked = questions(points)
    ours, theirs = (SamOnnxModel(m, single, return_extra_metrics=True)(**asked) for m in (our_sam(), meta_sam()))
    for a, b in zip(ours[:2] + ours[4:], theirs[:2] + theirs[4:], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_metas_export_script(tmp_path: Path) -> None:
    """What ``scripts/export_onnx_model.py`` does; the file answers other numbers of points."""
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = SamOnnxModel(our_sam(), return_single_mask=False)
    asked = questions(5)
    file = tmp_path / "sam.onnx"
    torch.onnx.export(
        model,
        tuple(asked.values()),
        str(file),
        input_names=list(asked),
        output_names=["masks", "iou_predictions", "low_res_masks"],
        dynamic_axes={"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}},
        opset_version=17,
        dynamo=False,
    )
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for points in (5, 1, 24):
        asked = questions(points)
        found = session.run(None, {k: v.numpy() for k, v in asked.items()})
        for got, wanted in zip(found, model(**asked), strict=True):
            assert np.abs(got - wanted.numpy()).max() < 1e-3 * max(1, float(wanted.abs().max()))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = our_sam().mask_decoder

    def forward(self, embedding: Any, places: Any, sparse: Any, dense: Any) -> Any:
        return self.decoder(embedding, places, sparse, dense, True)


@pytest.mark.long
def test_the_decoder_is_exported_for_any_number_of_prompts_and_points() -> None:
    cells = SIZE // 16

    def inputs(prompts: int, tokens: int) -> tuple[torch.Tensor, ...]:
        g = torch.Generator().manual_seed(prompts)
        shapes = ((1, 256, cells, cells), (1, 256, cells, cells), (prompts, tokens, 256), (prompts, 256, cells, cells))
        return tuple(torch.randn(*shape, generator=g) for shape in shapes)

    n, t = torch.export.Dim("prompts", max=64), torch.export.Dim("tokens", max=64)
    module = Decoder().eval()
    program = torch.export.export(
        module,
        inputs(3, 2),
        dynamic_shapes={"embedding": None, "places": None, "sparse": {0: n, 1: t}, "dense": {0: n}},
    ).module()
    for prompts, tokens in ((3, 2), (1, 1), (5, 30)):
        with torch.no_grad():
            asked = inputs(prompts, tokens)
            for got, wanted in zip(program(*asked), module(*asked), strict=True):
                torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
