"""Files, folders and hub names lead to a weights file, or to advice."""

from __future__ import annotations

import socket
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

import visionzoo.backbones  # noqa: F401  fills the registry
from visionzoo.registry import _SPECS
from visionzoo.weights import read_state_dict, resolve_source, write_safetensors


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors({"a": torch.ones(2)}, path)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put_in_cache(cache: Path, repository: str, file: str = "model.safetensors", revision: str = "main") -> Path:
    """A repository as huggingface_hub lays it out."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text("0" * 40)
    return put(folder / "snapshots" / ("0" * 40) / file)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.safetensors", "last.ckpt", "best.ckpt"], "model.safetensors"),
        (["pytorch_model.bin", "config.json"], "pytorch_model.bin"),
        (["open_clip_pytorch_model.bin", "open_clip_model.safetensors"], "open_clip_model.safetensors"),
        (["open_clip_laion.safetensors", "open_clip_config.json"], "open_clip_laion.safetensors"),
        (["model.safetensors.index.json", "model-00001-of-00001.safetensors"], "model.safetensors.index.json"),
    ],
)
def test_folders(tmp_path: Path, names: list[str], expected: str) -> None:
    for name in names:
        put(tmp_path / name)
    assert resolve_source(tmp_path) == tmp_path / expected


def test_folders_without_a_known_name_say_what_they_hold(tmp_path: Path) -> None:
    put(tmp_path / "run" / "last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"run did not end.*last\.ckpt"):
        resolve_source(tmp_path / "run")
    put(tmp_path / "other" / "deit.pth")
    with pytest.raises(FileNotFoundError, match=r"name one of deit\.pth"):
        resolve_source(tmp_path / "other")


def test_a_missing_path_suggests_near_ones(tmp_path: Path) -> None:
    put(tmp_path / "runs" / "digits-vit_nano" / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*digits-vit_nano\?"):
        resolve_source(tmp_path / "runs" / "digit-vit_nano")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*model\.safetensors\?"):
        resolve_source(tmp_path / "runs" / "digits-vit_nano" / "model.safetensor")
    with pytest.raises(FileNotFoundError, match="hf-hub:org/name"):
        resolve_source("timm/resnet50")
    with pytest.raises(ValueError, match="is an address; download the file"):
        resolve_source("https://example.org/vit.pth")


def test_hub_name_in_the_cache_needs_no_network(cache: Path, block_network: None) -> None:
    path = put_in_cache(cache, "org/vit")
    assert resolve_source("hf-hub:org/vit") == path
    old = put_in_cache(cache, "org/old", "pytorch_model.bin", revision="v1")
    assert resolve_source("hf-hub:org/old@v1") == old


def test_timm_name_leads_to_its_repository(cache: Path, block_network: None) -> None:
    path = put_in_cache(cache, "timm/vit_small_patch16_224.augreg_in21k_ft_in1k")
    assert resolve_source("timm:vit_small_patch16_224.augreg_in21k_ft_in1k") == path
    assert resolve_source("timm:vit_small_patch16_224") == path  # timm's first tag


def test_wrong_timm_names_suggest_right_ones() -> None:
    with pytest.raises(ValueError, match=r"did you mean .*vit_small_patch16_224"):
        resolve_source("timm:vit_smal_patch16_224")
    with pytest.raises(ValueError, match=r"no weights.*it has .*augreg_in21k"):
        resolve_source("timm:vit_small_patch16_224.nonsense")


def test_shards_in_the_cache_are_found(cache: Path, block_network: None) -> None:
    index = put_in_cache(cache, "org/big", "model.safetensors.index.json")
    index.write_text('{"weight_map": {"a": "model-00001.safetensors"}}')
    put(index.parent / "model-00001.safetensors")
    assert resolve_source("hf-hub:org/big") == index
    assert set(read_state_dict(index)[0]) == {"a"}


def test_weights_that_the_registry_names_are_known_to_timm(
    monkeypatch: pytest.MonkeyPatch, block_network: None
) -> None:
    monkeypatch.setattr("visionzoo.weights.sources.from_hub", lambda name, first: Path(name))
    named = [spec.weights for spec in _SPECS.values() if spec.weights is not None]
    assert len(named) > 50
    for weights in named:
        assert str(resolve_source(weights)).count("/") == 1, weights  # org/name


def test_without_a_network_the_error_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"not in the local cache.*cannot be reached.*give its path"):
        resolve_source("hf-hub:org/vit")
    with pytest.raises(ValueError, match="hf-hub:org/name"):
        resolve_source("hf-hub:not a name")


def test_without_a_network_the_error_comes_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client would try again for half a minute."""

    def no_name(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("asked the client, which tries again and again")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("visionzoo.weights.hub.getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", no_name)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", never)
    for source in ("hf-hub:org/vit", "timm:vit_small_patch16_224.augreg_in21k_ft_in1k"):
        with pytest.raises(FileNotFoundError, match=r"not in the local cache.*cannot be reached.*give its path"):
            resolve_source(source)


def test_what_is_not_cached_is_downloaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, file: str, **options: object) -> str:
        asked.append(file)
        if file != "pytorch_model.bin":
            raise huggingface_hub.errors.EntryNotFoundError(f"404 {file}")
        return str(put(cache / "downloaded.bin"))

    monkeypatch.setattr("visionzoo.weights.hub.hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert resolve_source("hf-hub:org/vit") == cache / "downloaded.bin"
    assert asked[0] == "model.safetensors"

    def broken(repository: str, file: str, **options: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(FileNotFoundError, match="cannot be reached"):
        resolve_source("hf-hub:org/vit")


def test_a_clip_is_asked_for_where_only_its_image_tower_is_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = put_in_cache(cache, "timm/clip")
    whole = tower.with_name("open_clip_model.safetensors")
    first = (whole.name, "open_clip_pytorch_model.bin")
    asked = []

    def download(repository: str, file: str, **options: object) -> str:
        asked.append(file)
        if file != whole.name:
            raise huggingface_hub.errors.EntryNotFoundError(f"404 {file}")
        return str(put(whole))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("visionzoo.weights.hub.hub_answers", lambda: False)
    assert resolve_source("hf-hub:timm/clip", first=first) == tower  # better than nothing
    monkeypatch.setattr("visionzoo.weights.hub.hub_answers", lambda: True)
    assert resolve_source("hf-hub:timm/clip") == tower
    assert asked == []
    assert resolve_source("hf-hub:timm/clip", first=first) == whole
    assert asked[0] == whole.name
    del asked[:]
    assert resolve_source("hf-hub:timm/clip", first=first) == whole
    assert asked == []  # it is cached now

    def broken(repository: str, file: str, **options: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    whole.unlink()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    assert resolve_source("hf-hub:timm/clip", first=first) == tower
