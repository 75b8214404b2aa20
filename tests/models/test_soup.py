"""Soups: the mean of runs, and which runs a greedy one takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import visionzoo as vz
from visionzoo.cli.main import main
from visionzoo.embedded import EMBEDDED
from visionzoo.models.bundle import load_bundle, read_config, write_bundle
from visionzoo.models.soup import greedy_soup, mean_of, uniform_soup


def disturbed(name: str, folder: Path, noise: float, seed: int) -> Path:
    """A run that has drifted from a model of the package."""
    state = load_bundle(EMBEDDED / name)[0].state_dict()
    g = torch.Generator().manual_seed(seed)
    for key, tensor in state.items():
        if tensor.is_floating_point():
            state[key] = tensor + noise * tensor.std(correction=0) * torch.randn(tensor.shape, generator=g)
    write_bundle(state, read_config(EMBEDDED / name), folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [disturbed("digits", folder / f"run{k}", noise, k) for k, noise in enumerate((0.3, 3.0, 0.3))]


def test_the_mean_is_the_mean() -> None:
    states = [
        {"w": torch.full((2,), v), "h": torch.full((2,), v).half(), "n": torch.tensor(7)} for v in (1.0, 2.0, 6.0)
    ]
    mean = mean_of(states)
    assert mean["w"].tolist() == [3.0, 3.0]
    assert (mean["h"].dtype, mean["n"].item()) == (torch.float16, 7)
    assert states[0]["w"].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="differ in other"):
        mean_of([{"w": torch.ones(2)}, {"w": torch.ones(2), "other": torch.ones(1)}])


def test_a_uniform_soup_is_a_run(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["soup", *map(str, (runs[0], runs[2])), "--out", str(tmp_path / "soup"), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == [str(runs[0]), str(runs[2])]
    states = [load_bundle(run)[0].state_dict() for run in (runs[0], runs[2], tmp_path / "soup")]
    for key, value in states[2].items():
        torch.testing.assert_close(value, (states[0][key] + states[1][key]) / 2)
    assert vz.ImageClassifier.load(tmp_path / "soup").labels == tuple("0123456789")
    assert read_config(tmp_path / "soup").calibration is None


def test_a_greedy_soup_leaves_out_what_spoils_it(runs: list[Path]) -> None:
    tasted = []

    def score(weights, config) -> float:
        del config
        true = load_bundle(EMBEDDED / "digits")[0].state_dict()
        tasted.append(-sum(float((weights[k] - v).square().sum()) for k, v in true.items() if v.is_floating_point()))
        return tasted[-1]

    soup = greedy_soup(runs, score)
    assert set(soup.runs) == {runs[0], runs[2]}
    assert soup.score == max(tasted)
    worst = greedy_soup(runs, score, higher_is_better=False)
    assert worst.runs[0] == runs[1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path"), [("digits", "digits"), ("shapes", "shapes")])
def test_the_command_scores_on_held_out_images(name: str, path: str, tmp_path: Path, capsys) -> None:
    made = [str(disturbed(name, tmp_path / f"run{k}", noise, k)) for k, noise in enumerate((0.2, 4.0, 0.2))]
    assert main(["soup", *made, "--greedy", "--data.path", path, "--out", str(tmp_path / "soup")]) == 0
    text = capsys.readouterr().out
    assert "greedy soup of" in text
    assert made[1] not in text.split("runs:")[-1].splitlines()[0]


def test_bad_input(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(EMBEDDED / "shapes", other)
    out = str(tmp_path / "soup")
    for given, said in (
        ([runs[0]], "two runs or more, and 1 was given"),
        ([runs[0], other], "differs from"),
        ([runs[0], tmp_path / "gone"], "there is no run folder"),
        ([runs[0], runs[2], "--greedy"], "give --data.path for --greedy"),
    ):
        assert main(["soup", *map(str, given), "--out", out]) == 2
        assert said in capsys.readouterr().err
        assert not Path(out).exists()
    config = json.loads((runs[2] / "config.json").read_text())
    shutil.copytree(runs[2], tmp_path / "renamed")
    (tmp_path / "renamed" / "config.json").write_text(json.dumps({**config, "labels": list("abcdefghij")}))
    with pytest.raises(ValueError, match="its labels"):
        uniform_soup([runs[0], tmp_path / "renamed"])
