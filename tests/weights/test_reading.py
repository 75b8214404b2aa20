"""Files are read without running code, and whatever is wrong with one is a single clear error."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from visionzoo.weights import SCHEMA_VERSION, read_state_dict, write_safetensors
from visionzoo.weights.unwrap import unwrap

STATE = {"blocks.0.weight": torch.arange(6.0).view(2, 3), "norm.bias": torch.ones(3)}


def same(a: dict[str, Tensor], b: dict[str, Tensor] = STATE) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in b)


class Evil:
    """Unpickling this would run code."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def test_each_kind_of_file_is_read_by_its_content(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "a.weights")
    torch.save(STATE, tmp_path / "b.safetensors")  # a wrong suffix does not matter
    torch.save(STATE, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "d.npz", **{k: v.numpy() for k, v in STATE.items()})
    for path in tmp_path.iterdir():
        assert same(read_state_dict(path)[0]), path


def test_metadata_and_schema_version_come_along(tmp_path: Path) -> None:
    write_safetensors(STATE, tmp_path / "a.safetensors", {"note": "hello"})
    _, metadata = read_state_dict(tmp_path / "a.safetensors")
    assert metadata["note"] == "hello"
    assert metadata["schema_version"] == str(SCHEMA_VERSION)
    write_safetensors(STATE, tmp_path / "b.safetensors", {"schema_version": "99"})
    with pytest.raises(ValueError, match=r"newer visionzoo \(schema_version 99.*upgrade"):
        read_state_dict(tmp_path / "b.safetensors")


def test_settings_beside_the_weights_are_read(tmp_path: Path) -> None:
    checkpoint = {
        "model": STATE,
        "args": argparse.Namespace(lr=1e-3, out=pathlib.Path("runs/x")),
        "best": np.float64(0.8),
        "history": np.float32(0.1),
    }
    torch.save(checkpoint, tmp_path / "a.pth")
    state, metadata = read_state_dict(tmp_path / "a.pth")
    assert same(state)
    assert metadata["unwrapped"] == "model"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, zipped: bool) -> None:
    canary = tmp_path / "canary"
    torch.save({"model": STATE, "x": Evil(canary)}, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"wants 'posix\.system'.*convert it once.*safetensors"):
        read_state_dict(tmp_path / "evil.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Evil(canary)))
    with pytest.raises(ValueError, match=r"plain\.pkl"):
        read_state_dict(tmp_path / "plain.pkl")
    np.savez(tmp_path / "evil.npz", a=np.array([Evil(canary)], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_state_dict(tmp_path / "evil.npz")
    assert not canary.exists()


def test_a_whole_pickled_model_is_refused_with_the_fix(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear.*model\.state_dict\(\)"):
        read_state_dict(tmp_path / "model.pt")


def test_torchscript_is_refused_naming_the_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-32.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"ViT-B-32/{name}", b"x")
    with pytest.raises(ValueError, match=r"TorchScript.*hf-hub:timm/vit_base_patch32_clip_224\.openai"):
        read_state_dict(path)
    path.rename(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"TorchScript.*torch\.jit\.load"):
        read_state_dict(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.safetensors", b"", "0 bytes"),
        ("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(90), "not a weights file"),
        ("page.bin", b"<!DOCTYPE html><html>Sign in</html>", "not a weights file"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("list.pt", None, "holds a list"),
        ("nothing.pt", None, "no state dict.*'epoch', 'lr'"),
    ],
)
def test_what_is_no_weights_file_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is None:
        torch.save([STATE] if name == "list.pt" else {"epoch": 3, "lr": 0.1}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_state_dict(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "npz"])
def test_truncated_and_damaged_files_never_crash(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "whole"
    if kind == "safetensors":
        safetensors.torch.save_file(STATE, path)
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, **{k: v.numpy() for k, v in STATE.items()})
    else:
        torch.save({"model": STATE}, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    rng, broken = random.Random(0), tmp_path / "broken"
    for share in (0.02, 0.2, 0.5, 0.9, 0.99):
        broken.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match="broken"):
            read_state_dict(broken)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        broken.write_bytes(damaged)
        try:
            read_state_dict(broken)  # a changed weight is no error, everything else has to be a clear one
        except ValueError as error:
            assert "broken" in str(error)  # noqa: PT017


def test_shards_are_put_together_and_may_not_leave_their_folder(tmp_path: Path) -> None:
    safetensors.torch.save_file({"norm.bias": STATE["norm.bias"]}, tmp_path / "model-00001.safetensors")
    safetensors.torch.save_file({"blocks.0.weight": STATE["blocks.0.weight"]}, tmp_path / "model-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {"norm.bias": "model-00001.safetensors", "blocks.0.weight": "model-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert same(read_state_dict(index)[0])
    (tmp_path / "model-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002"):
        read_state_dict(index)
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(ValueError, match="outside its own folder"):
        read_state_dict(index)
    index.write_text("[1, 2")
    with pytest.raises(ValueError, match="not an index"):
        read_state_dict(index)


@pytest.mark.parametrize(
    ("wrapped", "steps"),
    [
        ({"state_dict": {f"module.{k}": v for k, v in STATE.items()}}, ["state_dict", "module."]),
        ({"model": STATE, "optimizer": {"state": {}}, "epoch": 3}, ["model"]),
        ({"model": {k: v * 0 for k, v in STATE.items()}, "model_ema": STATE}, ["model_ema"]),
        ({"state_dict": {}, "state_dict_ema": STATE}, ["state_dict_ema"]),
        ({"model_ema": None, "model": STATE}, ["model"]),
        ({"ema": {"model": STATE}}, ["ema", "model"]),
        ({"teacher": {f"backbone.{k}": v for k, v in STATE.items()}, "student": STATE}, ["teacher", "backbone."]),
        ({f"_orig_mod.{k}": v for k, v in STATE.items()}, ["_orig_mod."]),
        ({"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in STATE.items()}}, ["module."]),
        ({f"params/{k}": v for k, v in STATE.items()}, ["params/"]),
        (
            {
                "pytorch-lightning_version": "2.6",
                "state_dict": {"loss.weight": torch.ones(2), **{f"model._orig_mod.{k}": v for k, v in STATE.items()}},
                "current_model_state": {f"model.{k}": v * 0 for k, v in STATE.items()},  # before averaging
            },
            ["state_dict", "_orig_mod.", "model."],
        ),
    ],
)
def test_wrappers_are_taken_off(wrapped: dict[str, Any], steps: list[str]) -> None:
    state, taken = unwrap(wrapped)
    assert same(state)
    assert taken == steps


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_that_need_scales_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    safetensors.torch.save_file(
        {"a.weight": torch.ones(2, 2).to(dtype), "b": torch.ones(2)}, tmp_path / "w.safetensors"
    )
    with pytest.raises(
        ValueError, match=r"w\.safetensors holds tensors that are not plain numbers \(torch\.float8.*a\.weight"
    ):
        read_state_dict(tmp_path / "w.safetensors")


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.eye(4).to_sparse()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"not plain numbers .*sparse|was not loaded"):
        read_state_dict(tmp_path / "w.pth")


def test_nested_records_are_one_error(tmp_path: Path) -> None:
    from visionzoo.weights.preprocessing import read_json
    from visionzoo.weights.reading import shard_names

    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": ' + "[" * 10_000)
    for read in (read_json, shard_names):
        with pytest.raises(ValueError, match="nested too deeply"):
            read(path)
