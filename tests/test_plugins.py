"""Other people's modules: how they are named, and what a file that may come from a stranger cannot have run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from visionzoo import plugins
from visionzoo.cli.commands import COMMANDS
from visionzoo.cli.imports import require_for_training
from visionzoo.cli.main import main
from visionzoo.models.bundle import ModelConfig, read_config
from visionzoo.plugins import PluginError, import_typed, remembered, require, typed

#: An extension that leaves a trace where it runs.
TRACE = "import visionzoo\nfrom pathlib import Path\nPath({trace!r}).touch()\n"


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty current directory, and nothing imported."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(plugins, "_typed", {})
    monkeypatch.setattr(plugins, "_added", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.startswith("ext_"):
            del sys.modules[name]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def extension(folder: Path, name: str, trace: Path, text: str = TRACE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.py"
    file.write_text(text.format(trace=str(trace)))
    return file


# ---- what the user types -------------------------------------------------------------------------------------------


def test_a_module_in_the_current_directory(work: Path, trace: Path) -> None:
    extension(work, "ext_here", trace)
    import_typed("ext_here")
    import_typed("ext_here")
    assert trace.exists()
    assert remembered() == typed() == ["ext_here"]


def test_a_file_is_remembered_without_its_folder(tmp_path: Path, trace: Path) -> None:
    file = extension(tmp_path / "elsewhere", "ext_file", trace)
    import_typed(str(file))
    assert sys.modules["ext_file"].__file__ == str(file)
    assert remembered() == ["ext_file.py"]
    assert typed() == [str(file)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ext_none", None, "--import ext_none: there is no module ext_none; install it, or name a .py file"),
        ("no/such.py", None, "--import no/such.py: there is no such file"),
        ("ext_bad.py", "import visionzoo\n1 / 0\n", "ZeroDivisionError: division by zero (ext_bad.py, line 2)"),
        ("ext_needs.py", "import ext_not_there\n", "failed: ModuleNotFoundError: No module named 'ext_not_there'"),
        ("json.py", "", "there is another module json; rename the file"),
        ("not-a-name.py", "", "not-a-name cannot name a module; rename the file"),
    ],
)
def test_what_cannot_be_imported_is_one_line(name: str, text: str | None, message: str, work: Path) -> None:
    if text is not None:
        (work / name).write_text(text)
    with pytest.raises(PluginError) as error:
        import_typed(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert remembered() == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_import(command: str, work: Path, trace: Path, capsys: Any) -> None:
    extension(work, "ext_command", trace)
    with pytest.raises(SystemExit) as done:
        main([*command.split(), "--import", "ext_command", "--help-all"])
    assert done.value.code == 0
    assert trace.exists()
    assert "--import MODULE" in capsys.readouterr().out


def test_training_takes_import_before_it_knows_its_tasks(work: Path, trace: Path, capsys: Any) -> None:
    text = TRACE + "visionzoo.register_task('ext_job', visionzoo.TaskEntry(summary='a job', task='a:b', data='a:b'))\n"
    from visionzoo.cli.tasks import TASKS

    try:
        extension(work, "ext_task", trace, text)
        assert main(["train", "--import=ext_task", "--help"]) == 0
        assert "ext_job      a job" in capsys.readouterr().out
    finally:
        TASKS.pop("ext_job", None)
    assert main(["train", "ext_job", "fit"]) == 2
    assert "unknown task 'ext_job'" in capsys.readouterr().err
    assert main(["predict", "run", "--import"]) == 2
    assert "--import needs a value" in capsys.readouterr().err


# ---- what a file may ask for ---------------------------------------------------------------------------------------


def run_naming(folder: Path, *names: str) -> Path:
    """A folder with an exported model's configuration that names modules."""
    from visionzoo.types import Preprocess

    folder.mkdir(parents=True, exist_ok=True)
    config = ModelConfig(
        task="classify",
        architecture={"backbone": "vit_nano_patch4_32", "num_classes": 2},
        preprocess=Preprocess(image_size=(32, 32)),
    )
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "imports": list(names)}))
    return folder


def test_an_installed_extension_is_imported_by_its_name(tmp_path: Path, trace: Path) -> None:
    extension(tmp_path / "site", "ext_site", trace)
    sys.path.append(str(tmp_path / "site"))
    assert read_config(run_naming(tmp_path / "run", "ext_site")).task == "classify"
    assert trace.exists()
    assert remembered() == ["ext_site"]  # what is trained from it says so too


def test_a_package_is_an_extension_where_one_of_its_modules_is(tmp_path: Path, trace: Path) -> None:
    package = tmp_path / "site" / "ext_package"
    extension(package, "models", trace)
    (package / "__init__.py").write_text("from ext_package import models\n")
    sys.path.append(str(tmp_path / "site"))
    read_config(run_naming(tmp_path / "run", "ext_package"))
    assert trace.exists()


@pytest.mark.parametrize("place", ["the run", "inside the run", "the current directory", "what the user added"])
def test_code_that_came_along_is_not_run(place: str, tmp_path: Path, work: Path, trace: Path) -> None:
    run = tmp_path / "run"
    folder = {"the run": run, "inside the run": run / "site", "the current directory": work}.get(place, tmp_path / "x")
    extension(folder, "ext_evil", trace)
    if place == "what the user added":
        extension(folder, "ext_good", tmp_path / "other")
        import_typed(str(folder / "ext_good.py"))
    sys.path[:0] = ["", str(folder)]
    with pytest.raises(PluginError, match=r"config.json was made with --import ext_evil, .* add --import ext_evil"):
        read_config(run_naming(run, "ext_evil"))
    assert not trace.exists()


@pytest.mark.parametrize("name", ["antigravity", "ext_plain", "ext_plain.deeper", "../there/ext_x.py", "", ".", "a b"])
def test_what_is_no_extension_is_not_imported(name: str, tmp_path: Path, trace: Path) -> None:
    extension(tmp_path / "site", "ext_plain", trace, TRACE.replace("import visionzoo\n", ""))
    sys.path.append(str(tmp_path / "site"))
    with pytest.raises(PluginError, match="no installed extension"):
        read_config(run_naming(tmp_path / "run", name))
    assert not trace.exists()
    assert "antigravity" not in sys.modules


def test_a_file_that_the_user_has_imported_is_enough(tmp_path: Path, work: Path, trace: Path) -> None:
    run = run_naming(tmp_path / "run", "ext_mine.py")
    with pytest.raises(PluginError, match=r"add --import ext_mine\.py"):
        read_config(run)
    import_typed(str(extension(work, "ext_mine", trace)))
    read_config(run)


def test_a_configuration_of_a_training_run_asks_in_the_same_way(tmp_path: Path, trace: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    extension(run, "ext_evil", trace)
    (run / "config.yaml").write_text("import:\n- ext_evil\n")
    for command in (["--resume", str(run)], [f"--config={run}/config.yaml"]):
        assert main(["train", "classify", "fit", *command]) == 2
        assert "add --import ext_evil" in capsys.readouterr().err
    assert not trace.exists()
    with pytest.raises(PluginError):
        require(["ext_evil"], run / "config.yaml")


def test_imports_that_are_no_list_of_names_are_refused(tmp_path: Path) -> None:
    run = run_naming(tmp_path / "run")
    values = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**values, "imports": [3]}))
    with pytest.raises(ValueError, match="imports is"):
        read_config(run)


# ---- what the options of a run's trainer name ------------------------------------------------------------------------

HOOK = {"class_path": "pytorch_lightning.callbacks.LambdaCallback", "init_args": {"on_fit_start": "os.abort"}}


def run_with(trainer: Any, folder: Path) -> None:
    folder.mkdir()
    (folder / "last.ckpt").touch()
    (folder / "config.yaml").write_text(json.dumps({"trainer": trainer, "data": {"path": "test.csv"}}))


@pytest.mark.parametrize(
    ("trainer", "named"),
    [
        ({"callbacks": [{"class_path": "ext_seen.Seen"}]}, "ext_seen.Seen"),
        ({"callbacks+": {"class_path": "ext_seen.Seen"}}, "ext_seen.Seen"),
        ({"callbacks": "ext_seen.Seen"}, "ext_seen.Seen"),
        ({"logger": {"class_path": "ext_nowhere.Log"}}, "ext_nowhere.Log"),
        ({"strategy": {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}}, "subprocess.Popen"),
        ({"callbacks": [HOOK]}, "os.abort"),
        ("more.yaml", "'more.yaml'"),
        ({"callbacks": "more"}, "'more'"),
    ],
)
def test_a_run_of_a_stranger_names_nothing_to_run(
    trainer: Any, named: str, tmp_path: Path, work: Path, trace: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension(tmp_path / "installed", "ext_seen", trace, "from pathlib import Path\nPath({trace!r}).touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    run_with(trainer, work / "run")
    (work / "run" / "more").write_text(json.dumps([{"class_path": "ext_seen.Seen"}]))
    assert main(["train", "classify", "fit", "--resume", "run"]) == 2
    assert not trace.exists()
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1
    assert ("--import" in said) == ("." in named and "more" not in named)


def test_lightnings_own_classes_and_typed_modules_may_be_named(
    tmp_path: Path, work: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension(work, "ext_mine", trace)
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}}
    run_with({"callbacks": [stopping, {"class_path": "ext_mine.Mine"}], "logger": "CSVLogger"}, work / "run")
    args = ["classify", "fit", "--resume", "run"]
    with pytest.raises(PluginError, match="add --import ext_mine"):
        require_for_training(args)
    import_typed("ext_mine.py")
    require_for_training(args)


@pytest.mark.long
def test_a_callback_that_the_user_names_is_remembered(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "installed").mkdir()
    text = "from pytorch_lightning import Callback\n\n\nclass Mine(Callback):\n    pass\n"
    (tmp_path / "installed" / "ext_callback.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    options = ["--data.path=shapes:32", "--data.num_workers=0", "--data.batch_size=8", "--trainer.accelerator=cpu"]
    options += ["--model.backbone=vit_nano_patch4_32", "--trainer.max_steps=1", "--run_dir=run"]
    assert main(["train", "classify", "fit", *options, "--trainer.callbacks=ext_callback.Mine"]) == 0
    text = (work / "run" / "config.yaml").read_text()
    assert "--import ext_callback" in text.splitlines()[0]
    again = ["classify", "fit", "--resume", "run"]
    require_for_training(again)  # in this process it has been named
    monkeypatch.setattr(plugins, "_typed", {})
    for name in [n for n in sys.modules if n.startswith("ext_")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(PluginError, match="add --import ext_callback"):
        require_for_training(again)
