"""Recipes are functions of counts; results say what they are worth."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionzoo.auto.recipes import (
    LEAST_EPOCHS,
    DataFacts,
    Recipe,
    affordable_epochs,
    batch_size,
    minutes,
    recipe,
    scratch_network,
    wanted_epochs,
)
from visionzoo.auto.result import Fitted, Request, Trial, beats, table


@pytest.mark.parametrize("method", ["lora", "full", "scratch"])
def test_epochs_fit_into_the_minutes(method) -> None:  # type: ignore[no-untyped-def]
    for most in (0.01, 1.0, 10.0, 1e6):
        epochs = affordable_epochs(method, most, 900, 100, 50.0)
        assert epochs == 0 or LEAST_EPOCHS[method] <= epochs <= wanted_epochs(method, 900)
        assert minutes(method, epochs, 900, 100, 50.0) <= most
    assert affordable_epochs(method, 1e6, 900, 100, 50.0) == wanted_epochs(method, 900)


def test_many_images_need_few_epochs() -> None:
    for method in ("lora", "full", "scratch"):
        wanted = [wanted_epochs(method, n) for n in (10, 500, 5_000, 100_000, 10_000_000)]  # type: ignore[arg-type]
        assert wanted == sorted(wanted, reverse=True)
        assert wanted[-1] >= LEAST_EPOCHS[method]  # type: ignore[index]


@pytest.mark.parametrize(("images", "size"), [(3, 2), (20, 5), (100, 25), (5000, 32)])
def test_a_batch_leaves_several_steps(images: int, size: int) -> None:
    assert batch_size(images) == size


def test_views() -> None:
    small = recipe(
        "full", DataFacts(images=500, classes=3, pixels=28, mirrors=False), 5, precision="32-true", workers=0
    )
    large = recipe("full", DataFacts(images=500, classes=3, pixels=300), 5, precision="32-true", workers=0)
    assert (small.data["hflip"], large.data["hflip"]) == (0.0, 0.5)
    assert small.data["crop_scale"][0] > large.data["crop_scale"][0]
    assert Recipe(**large.to_dict()) == large


def test_a_network_from_nothing_is_as_small_as_its_images() -> None:
    assert [scratch_network(p)[1] for p in (8, 16, 28, 32, 48, 64, 500)] == [16, 16, 32, 32, 48, 64, 64]


def result(*trials: Trial, kept: str = "linear", chance: float = 0.25) -> Fitted:
    request = Request(path="p", minutes=1.0)
    return Fitted(
        request=request, network="n",
        data="0", image_size=16, train_images=100, train_limit=None, classes=4,
        largest_class=chance,
        trials=trials, kept=kept,
    )  # fmt: skip


def test_guessing_is_called_guessing() -> None:
    lucky = result(Trial(name="k-NN", accuracy=0.34, images=100), Trial(name="linear", accuracy=0.2, images=100))
    assert "nothing beats guessing" in lucky.to_text()
    good = result(Trial(name="k-NN", accuracy=0.5, images=100), Trial(name="linear", accuracy=0.6, images=100))
    assert good.doubts() == []
    assert beats(0.34, 100, 0.25)  # of a single try it would be more than chance gives
    assert not beats(0.34, 100, 0.25, of=2)


def test_a_yardstick_that_is_better_is_said() -> None:
    found = result(Trial(name="k-NN", accuracy=0.9, images=100), Trial(name="linear", accuracy=0.7, images=100))
    assert "k-NN is 20.0 points better" in found.to_text()
    assert "nobody knows how good" in result(Trial(name="linear", note="none")).to_text()


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = result(Trial(name="lora", setting="2 epochs", accuracy=0.8, images=20, rival=0.7, minutes=1.5, note="x"))
    found.write(tmp_path)
    assert Fitted.read(tmp_path) == found
    assert any("80.0 % of 20 (linear 70.0 %); x" in line for line in table(found.trials))
    text = (tmp_path / "fit.json").read_text()
    for damage, said in (
        (text.replace('"network"', '"net"'), "damaged"),
        (text.replace('"schema_version": 1', '"schema_version": 9'), "another version"),
        (text[:50], "fit.json"),
    ):
        (tmp_path / "fit.json").write_text(damage)
        with pytest.raises(ValueError, match=said):
            Fitted.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no run of `visionzoo fit`"):
        Fitted.read(tmp_path / "elsewhere")
