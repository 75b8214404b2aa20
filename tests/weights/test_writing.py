"""A weights file is there whole or not at all."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from visionzoo.weights import read_state_dict, write_safetensors


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process may grow past 100 kB, so that a write fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_keeps_the_earlier_file(tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors({"a": torch.zeros(3)}, path)
    with pytest.raises(OSError, match=r"cannot write .*model\.safetensors.*the earlier file is unchanged"):
        write_safetensors({"a": torch.ones(1_000_000)}, path)
    assert torch.equal(read_state_dict(path)[0]["a"], torch.zeros(3))
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_tied_and_strided_tensors_are_written(tmp_path: Path) -> None:
    weight = torch.arange(12.0).view(3, 4)
    tensors = {"a": weight, "tied": weight, "transposed": weight.T, "part": weight[1:], "half": weight.bfloat16()}
    write_safetensors(tensors, tmp_path / "a.safetensors")
    state, _ = read_state_dict(tmp_path / "a.safetensors")
    assert all(torch.equal(state[k], v) for k, v in tensors.items())


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        write_safetensors(nn.Linear(2, 2).state_dict(), tmp_path / "file" / "a.safetensors")
