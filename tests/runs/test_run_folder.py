from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from visionzoo.runs import RunFolder


def test_create_numbers_what_is_taken(tmp_path: Path) -> None:
    names = [RunFolder.create(tmp_path / "runs", "classify-digits-vit_nano").path.name for _ in range(3)]
    assert names == ["classify-digits-vit_nano", "classify-digits-vit_nano-2", "classify-digits-vit_nano-3"]


def test_create_at_once_gives_each_caller_its_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: RunFolder.create(tmp_path, "a"), range(40)))
    assert len({run.path for run in runs}) == 40


@pytest.mark.parametrize(
    ("name", "expected"),
    [("classify-x-timm/resnet50", "classify-x-timm_resnet50"), ("../../etc", "etc"), ("a b:c", "a_b_c")],
)
def test_create_cleans_names(tmp_path: Path, name: str, expected: str) -> None:
    assert RunFolder.create(tmp_path, name).path == tmp_path / expected


def test_create_refuses_a_name_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'\.\./' cannot name a run folder"):
        RunFolder.create(tmp_path, "../")


def test_open_accepts_a_run(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a")
    run.config_yaml.write_text("seed: 0")
    assert RunFolder.open(run).last == tmp_path / "a" / "last.ckpt"


def test_open_names_what_is_wrong(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "digits-vit_nano")
    with pytest.raises(ValueError, match=r"not a run folder: it has none of config\.yaml"):
        RunFolder.open(run)
    run.model.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*digits-vit_nano\?"):
        RunFolder.open(tmp_path / "digit-vit_nano")
    with pytest.raises(ValueError, match="it holds the runs digits-vit_nano: give one of them"):
        RunFolder.open(tmp_path)
    with pytest.raises(ValueError, match="is a file; give the run folder"):
        RunFolder.open(run.model)


def test_minutes_of_sessions_that_were_killed_are_not_known() -> None:
    from visionzoo.runs.record import minutes_in_words

    trained = {"ancestors": [], "minutes": 2.0}
    assert minutes_in_words([trained, {"command": "validate"}, {"minutes": 0.5}]) == "2.5"
    assert minutes_in_words([{"ancestors": []}, trained]) == "more than 2.0"
    assert minutes_in_words([{"ancestors": []}]) == ""
