"""The run folder: one place that knows what every file of a run is called."""

from __future__ import annotations

import re
from pathlib import Path

from visionzoo.files import refuse_address, similar_names
from visionzoo.weights.hub import HUB_PREFIX


class RunFolder:
    """The files of one run. Reading a path does not create it.

    Use :meth:`create` for a new run, :meth:`open` for one that exists. ``RunFolder(path)`` only names the files.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_yaml = self.path / "config.yaml"  #: the exact configuration; reruns the run
        self.record = self.path / "run.json"  #: versions, command, seed, git state, data fingerprint
        self.metrics_csv = self.path / "metrics.csv"
        self.last = self.path / "last.ckpt"
        self.best = self.path / "best.ckpt"
        self.model = self.path / "model.safetensors"  #: exported weights
        self.model_config = self.path / "config.json"  #: architecture, preprocessing and labels of the exported weights
        self.bad_samples = self.path / "bad_samples.csv"
        self.nonfinite = self.path / "nonfinite.csv"  #: samples of steps that were left out
        self.curves = self.path / "curves.png"
        self.confusion_matrix = self.path / "confusion_matrix.png"
        self.mistakes = self.path / "mistakes.png"
        self.per_class = self.path / "per_class.csv"
        self.sheets = self.path / "sheets"  #: pictures drawn while training
        self.retrieval = self.path / "retrieval.png"
        self.masks_sheet = self.path / "masks.png"
        self.reconstruction = self.path / "reconstruction.png"
        self.views = self.path / "views.png"  #: views, attention and neighbours, of pretraining on views
        self.results = self.path / "results.json"  #: the scores of the exported weights
        self.answers = self.path / "answers.parquet"  #: what was answered for held-out images, see ``runs/answers.py``
        self.report = self.path / "report.html"  #: everything on one page

    @classmethod
    def create(cls, base: str | Path = "runs", name: str = "run") -> RunFolder:
        """Make a new folder ``base/name``, or ``name-2``, ``name-3`` and so on where that is taken.

        Two processes that ask at once get two folders. Characters of ``name`` that do not belong in a file name, such
        as the slash of ``timm/resnet50``, become ``_``.

        Raises:
            ValueError: for a name with nothing usable in it.
            OSError: where the folder cannot be made.
        """
        clean = re.sub(r"[^\w.+=@-]+", "_", name).strip("._")[:150]
        if not clean:
            raise ValueError(f"{name!r} cannot name a run folder; use letters, digits, '-' and '_'")
        parent = Path(base)
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = parent / (clean if number == 1 else f"{clean}-{number}")
            try:
                path.mkdir(exist_ok=False)  # the file system decides who was first
            except FileExistsError:
                number += 1
            else:
                return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run in an existing folder.

        Raises:
            FileNotFoundError: if there is no such folder; the message names runs with a similar name.
            ValueError: if the folder does not hold a run, or the path is an address.
        """
        run = cls(path)
        if not run.path.exists():
            refuse_address(path)
            if str(path).startswith(HUB_PREFIX):
                raise FileNotFoundError(
                    f"{path} is no run that `visionzoo push` has published, or the hub cannot be reached and the local "
                    "cache has no copy"
                )
            raise FileNotFoundError(f"there is no run folder {run.path}{_near(run.path)}")
        if not run.path.is_dir():
            raise ValueError(f"{run.path} is a file; give the run folder, for example {run.path.parent}")
        if not run.is_run():
            runs = [p.name for p in sorted(run.path.iterdir()) if p.is_dir() and cls(p).is_run()]
            hint = f"; it holds the runs {', '.join(runs[:5])}: give one of them" if runs else ""
            raise ValueError(
                f"{run.path} is not a run folder: it has none of {', '.join(p.name for p in run._marks())}{hint}"
            )
        return run

    def is_run(self) -> bool:
        """Whether the folder holds a configuration, a checkpoint or exported weights."""
        return any(p.is_file() for p in self._marks())

    def _marks(self) -> tuple[Path, ...]:
        return self.config_yaml, self.last, self.best, self.model

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [p.name for p in path.parent.iterdir() if p.is_dir()]
    near = similar_names(path.name, names)
    return f"; did you mean {' or '.join(str(path.parent / n) for n in near)}?" if near else ""
