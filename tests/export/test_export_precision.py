"""Lower precisions: what departs is found and kept, accuracy is held, and the user hears what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from visionzoo.cli.main import main
from visionzoo.export.failure import NotTheSame
from visionzoo.export.half import first_departure, to_fp16
from visionzoo.export.parts import Feed, GraphPart, Port
from visionzoo.export.proof import prove
from visionzoo.export.to_onnx import OnnxRunner, export_onnx
from visionzoo.models.bundle import ModelConfig, save_bundle


class Loud(nn.Module):
    """(B, 8) -> (B, 8), with values in between that half precision does not hold."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quiet, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        with torch.no_grad():
            self.up.weight.mul_(1e6)
            self.down.weight.mul_(1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return self.down(self.up(torch.tanh(self.quiet(x))))


def _feeds(images: object) -> Iterator[Feed]:
    for batch in (3, 1):
        yield Feed("rows", batch, (torch.randn(batch, 8, generator=torch.Generator().manual_seed(batch)),))


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphPart, Path]:
    part = GraphPart(
        name="loud",
        module=Loud().eval(),
        inputs=(Port("x", "float32", ("batch", 8), ""),),
        outputs=(Port("y", "float32", ("batch", 8), ""),),
        feeds=_feeds,
    )
    path = tmp_path_factory.mktemp("loud") / "loud.onnx"
    export_onnx(part, next(_feeds(())), path, {})
    return part, path


def test_nodes_that_half_precision_cannot_hold_are_kept(loud: tuple[GraphPart, Path], tmp_path: Path) -> None:
    part, original = loud
    path = tmp_path / "loud.onnx"
    path.write_bytes(original.read_bytes())
    proof, kept = to_fp16(path, part, [])
    proof.require("fp16")
    types = {w.name: w.data_type for w in onnx.load(path).graph.initializer}
    assert set(kept) == {"node_linear_1", "node_linear_2"}
    nodes = {node.name: node for node in onnx.load(original).graph.node}
    fp32 = onnx.TensorProto.FLOAT
    for name in kept:
        assert all(types[i] == fp32 for i in nodes[name].input if i in types), name
    assert types["quiet.weight.fp16"] == onnx.TensorProto.FLOAT16
    assert "up.weight.fp16" not in types
    assert all(o.type.tensor_type.elem_type == fp32 for o in onnx.load(path).graph.output)


def test_the_first_node_that_departs_is_named(loud: tuple[GraphPart, Path], tmp_path: Path) -> None:
    _, original = loud
    model = onnx.load(original)
    middle = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")][1]
    weight = next(w for w in model.graph.initializer if w.name == middle.input[1])
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values[::-1]), weight.name))
    spoilt = tmp_path / "spoilt.onnx"
    onnx.save(model, spoilt)
    assert first_departure(original, spoilt, next(_feeds(())), 0.999) == middle.name
    assert first_departure(original, original, next(_feeds(())), 0.999) is None


def test_half_precision_of_a_classifier(exported: Path, run_folder: Path, tmp_path: Path) -> None:
    from visionzoo.export.feeds import proof_images
    from visionzoo.export.plans import Wish, make_plan
    from visionzoo.inference.classifier import ImageClassifier

    (part,) = make_plan(ImageClassifier.load(run_folder, "cpu"), Wish(), "pets").parts
    path = tmp_path / "model.onnx"
    path.write_bytes((exported / "model.onnx").read_bytes())
    proof, kept = to_fp16(path, part, proof_images(None)[0][:4])
    assert kept == []
    assert min(row.cosine for row in proof.rows) > 0.999
    assert path.stat().st_size < 0.65 * (exported / "model.onnx").stat().st_size


def test_a_file_that_answers_with_nan_is_not_the_same(loud: tuple[GraphPart, Path]) -> None:
    part, path = loud
    runner = OnnxRunner(path)
    proof = prove(part, lambda x: [np.full_like(runner(x)[0], np.nan)], [])
    for precision in ("fp32", "fp16"):
        with pytest.raises(Exception, match="loud: output y at rows"):
            proof.require(precision)


@pytest.mark.parametrize(("cosine", "refused"), [(0.96, False), (0.9, True), (float("nan"), True)])
def test_int8_without_labels_is_held_against_pytorch(
    cosine: float, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visionzoo.export import quantise
    from visionzoo.export.proof import Compared, Proof

    path = tmp_path / "model.onnx"
    path.write_bytes(b"whole")
    monkeypatch.setattr(quantise, "OnnxRunner", lambda _: None)
    monkeypatch.setattr(quantise, "_worst", lambda *_: ("a layer",))
    monkeypatch.setattr(quantise, "_quantise", lambda _path, low, *_: low.write_bytes(b"small"))
    rows = (Compared("image", "grid", "32x32", 1), Compared("image", "pooled", "32x32", 1, cosine=cosine))
    monkeypatch.setattr(quantise, "prove", lambda *_: Proof(rows))
    part: Any = SimpleNamespace(inputs=[SimpleNamespace(name="images")], feeds=lambda _: iter([None]))
    if refused:
        with pytest.raises(NotTheSame, match="is needed where no labels judge it"):
            quantise.to_int8(path, part, [], [], None)
    else:
        quantise.to_int8(path, part, [], [], None)
    assert path.read_bytes() == (b"whole" if refused else b"small")
    assert list(tmp_path.iterdir()) == [path]


def test_int8_wants_pictures(
    run_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["export", str(run_folder), "--precision", "int8", "--out", str(tmp_path / "out")]
    one = tmp_path / "one"
    one.mkdir()
    Image.open(photos / "001.png").save(one / "a.png")
    for more, words in (([], "--data.path"), (["--data.path", str(one)], "1 are too few")):
        assert main([*export, *more]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_int8_keeps_the_accuracy_and_says_what_it_costs(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels are the model's own answers, so that any change of an answer costs accuracy."""
    from export_models import LABELS
    from sklearn.datasets import load_digits

    import visionzoo as vz

    classifier = vz.ImageClassifier.load(run_folder, "cpu")
    pictures = [Image.fromarray((d * 15.9).astype(np.uint8)).resize((32, 32)) for d in load_digits().images[:200]]
    with torch.no_grad():  # so that every label is an answer
        head = classifier.model.head
        head.bias.sub_(classifier._collect(classifier._logits, pictures, 64, 4).mean(0))  # type: ignore[union-attr, operator]
    for i, (picture, answer) in enumerate(zip(pictures, classifier.predict(pictures, top_k=1), strict=True)):
        folder = tmp_path / "data" / answer[0][0]
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{i}.png")
    config = ModelConfig(
        task="classify", architecture=classifier.model.architecture, preprocess=classifier.preprocess, labels=LABELS
    )  # type: ignore[arg-type]
    save_bundle(classifier.model, config, tmp_path / "run")
    out = tmp_path / "out"
    done = main(["export", str(tmp_path / "run"), "--precision", "int8", "--data.path", str(tmp_path / "data"),
                 "--out", str(out)])  # fmt: skip
    captured = capsys.readouterr()
    if done == 1:  # a fresh network is near all its boundaries
        assert "points of top-1" in captured.err
        assert not out.exists()
        return
    assert "times smaller than fp32" in captured.out
    assert "before" in captured.out
    assert "as fast as bf16 in PyTorch" in captured.out
    assert vz.load_exported(out).predict(pictures[:3])
