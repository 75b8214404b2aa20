"""SAM's layouts, both ways: Meta's files and transformers' SamModel."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from sam_twins import DEPTH, SIZE, meta_sam, nano_sam, our_sam, shallow_sam
from transformers import SamConfig, SamModel

import visionzoo as vz
from visionzoo.weights import export_weights, load_weights
from visionzoo.weights.adapters import LAYOUTS


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, tensor in a.items():
        assert torch.equal(tensor, b[key]), key


def hf_sam() -> SamModel:
    vision = {"image_size": SIZE, "num_hidden_layers": DEPTH, "global_attn_indexes": [1], "mlp_dim": 3072}
    torch.manual_seed(3)
    return SamModel(SamConfig(vision_config=vision, prompt_encoder_config={"image_size": SIZE})).eval()


def test_metas_file_loads_unchanged_and_is_written_as_it_was(tmp_path) -> None:
    torch.save(meta_sam().state_dict(), tmp_path / "sam_vit_b.pth")
    model = shallow_sam()
    report = load_weights(model, tmp_path / "sam_vit_b.pth")
    assert report.layout == "segment_anything"
    assert report.share == 1
    equal(model.state_dict(), our_sam().state_dict())
    path = export_weights(model, tmp_path / "out.safetensors", layout="segment_anything")
    equal(load_file(path), dict(meta_sam().state_dict()))
    meta_sam().load_state_dict(load_file(path))


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_every_key_of_metas_models_has_its_place(name) -> None:
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        meta, ours = sam_model_registry[name](), vz.create_sam(name)
    state, own = meta.state_dict(), ours.state_dict()
    found = LAYOUTS["segment_anything"].to_timm(state)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in own.items()}
    assert {k: v.shape for k, v in LAYOUTS["segment_anything"].from_timm(own).items()} == {
        k: v.shape for k, v in state.items()
    }


def test_plain_load_state_dict_takes_both_layouts() -> None:
    for state in (meta_sam().state_dict(), hf_sam().state_dict()):
        model = shallow_sam()
        model.load_state_dict(state)
        weight = next(v for k, v in state.items() if k.endswith("0.mlp.lin1.weight") and "enc" in k)
        assert torch.equal(model.image_encoder.blocks[0].mlp.fc1.weight, weight)


def test_transformers_both_ways(tmp_path) -> None:
    twin = hf_sam()
    twin.save_pretrained(tmp_path)
    model = shallow_sam()
    report = load_weights(model, tmp_path)
    assert report.layout == "transformers_sam"
    assert report.share == 1
    again = shallow_sam()
    again.load_state_dict(twin.state_dict())  # in memory it has one tensor twice
    equal(again.state_dict(), model.state_dict())
    path = export_weights(model, tmp_path / "out.safetensors", layout="transformers")
    equal(load_file(path), dict(twin.state_dict()))


@pytest.mark.parametrize("source", ["meta", "transformers", "ours"])
def test_the_encoder_alone_loads_into_its_backbone(source) -> None:
    trunk = shallow_sam().backbone
    state = {"meta": meta_sam, "transformers": hf_sam, "ours": our_sam}[source]().state_dict()
    load_weights(trunk, state)
    key = {"meta": "image_encoder.neck.2.weight", "transformers": "vision_encoder.neck.conv2.weight"}
    assert torch.equal(trunk.neck[2].weight, state[key.get(source, key["meta"])])
    loaded = trunk.state_dict()["blocks.1.mlp.fc2.bias"]
    assert any(loaded.shape == v.shape and torch.equal(loaded, v) for v in state.values())


def test_models_that_meta_does_not_have_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="has no place for"):
        export_weights(nano_sam(), tmp_path / "x.safetensors", layout="segment_anything")
    with pytest.raises(ValueError, match=r"do not fit|missing"):
        load_weights(nano_sam(), meta_sam().state_dict())
    state = dict(meta_sam().state_dict())
    del state["mask_decoder.mask_tokens.weight"]
    model = shallow_sam()
    before = model.state_dict()["mask_decoder.iou_token.weight"].clone()
    with pytest.raises(ValueError, match=r"missing.*mask_tokens"):
        load_weights(model, state)
    assert torch.equal(model.mask_decoder.iou_token.weight, before)
