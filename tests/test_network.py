"""Importing, building, training and predicting never touch the network."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('127.0.0.1', 9))",
        "socket.getaddrinfo('huggingface.co', 443)",
        "socket.socket().connect(('127.0.0.1', 9))",
        "__import__('urllib.request').request.urlopen('http://127.0.0.1:9')",
    ],
)
def test_the_block_blocks(run_offline: Callable[..., str], attempt: str) -> None:
    code = f"try:\n    {attempt}\nexcept AssertionError as e:\n    print(e)\n"
    assert "used the network" in run_offline(code)


@pytest.mark.usefixtures("block_network")
def test_the_block_blocks_in_this_process() -> None:
    with pytest.raises(AssertionError, match="used the network"):
        socket.create_connection(("127.0.0.1", 9))


@pytest.mark.long
def test_backbones_and_classifiers_stay_offline(run_offline: Callable[..., str]) -> None:
    code = """
import torch, visionzoo as vz
for name in vz.__all__:
    getattr(vz, name)
vz.list_backbones(capability="pyramid")
for name in ("vit_nano_patch4_32", "timm/test_vit", "timm/resnet18.a1_in1k"):
    info = vz.backbone_info(name)
    model = vz.create_classifier(name, num_classes=3).eval()
    print(name, tuple(model(torch.zeros(1, 3, *info.image_size)).shape))
with vz.shared_backbone("timm/test_vit") as shared:
    shared.features(torch.zeros(1, 3, *shared.info.image_size))
for name in ("timm/resnet5O", "timm/resnet50.nonsense", "timm/hf-hub:timm/resnet50"):
    try:
        vz.create_backbone(name)
    except ValueError:
        print("refused")
"""
    out = run_offline(code)
    assert out.count("(1, 3)") == 3
    assert out.count("refused") == 3


@pytest.mark.slow
def test_training_and_predicting_stay_offline(run_offline: Callable[..., str]) -> None:
    code = """
from PIL import Image
from visionzoo.cli import train
from visionzoo.cli.main import main
options = '''--model.backbone=vit_nano_patch4_32 --model.image_size=16 --data.path=digits --data.train_limit=64
    --data.num_workers=0 --trainer.max_epochs=1 --trainer.limit_val_batches=1 --trainer.accelerator=cpu --run_dir=run'''
assert train.run(["classify", "fit", *options.split()]) == 0
Image.new("RGB", (20, 20)).save("a.png")
assert main(["predict", "run", "a.png"]) == 0
"""
    assert "a.png" in run_offline(code, timeout=280)
