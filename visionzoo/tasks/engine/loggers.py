"""``metrics.csv``, one flat file with a row per logged step, kept right across resumes; and TensorBoard's events."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyExperiment, Logger, rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from visionzoo.files import write_csv
from visionzoo.tasks.engine.disk import disk_may_fail, unwritten

FIRST_COLUMNS = ("epoch", "step")


class MetricsFile(Logger):
    """Append rows to a CSV file; a new column rewrites it whole, and so does a row after one that did not get there.

    Args:
        path: the file; None on ranks other than 0. Rows that are there are kept: :meth:`forget_after` drops those
            that a resumed run will write again.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = list(FIRST_COLUMNS)
        self._rows: list[dict[str, str]] = []
        if path is not None and path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                # a killed process may have left half a line
                self._rows = [row for row in reader if (row.get("step") or "").isdigit()]
                self._columns = list(reader.fieldnames or FIRST_COLUMNS)

    @property
    def name(self) -> str:
        """Empty: there is no folder of its own."""
        return ""

    @property
    def version(self) -> str:
        """Empty: there is no folder of its own."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsFile:
        """Itself."""
        return self

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration is in ``config.yaml`` already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row; the file is written again where a column is new."""
        if self.path is None:
            return
        row = {k: _text(v) for k, v in metrics.items()} | {"step": str(step)}
        if self._rows and self._rows[-1] == row:
            return  # logged before a save, see save_between_steps
        self._rows.append(row)
        new = sorted(k for k in row if k not in self._columns)
        self._columns += new
        with disk_may_fail(self.path, "its rows are kept in memory, training goes on"):
            if new or self.path in unwritten or not self.path.exists():
                self._write()
                return
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self._columns, restval="", lineterminator="\n").writerow(row)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Try once more to write what could not be written."""
        if self.path in unwritten:
            with disk_may_fail(self.path, "rows are lost"):
                self._write()

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Drop rows of steps that are still to come when a run goes on from optimizer step ``step``."""
        kept = [row for row in self._rows if int(row["step"]) < step]
        if len(kept) < len(self._rows):
            self._rows = kept
            self._write()

    def _write(self) -> None:
        assert self.path is not None
        write_csv(self.path, self._columns, [[row.get(c, "") for c in self._columns] for row in self._rows])


def _text(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


class Events(TensorBoardLogger):
    """TensorBoard's event files directly in the run folder; nothing is written before :meth:`open`.

    Lightning makes the file before it has read the checkpoint that a run goes on from, and a run that cannot go on
    must stay as it is.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(save_dir=str(folder), name="", version="", default_hp_metric=False)
        self._last: tuple[int | None, dict[str, float]] = (None, {})
        self._is_open = False
        self._options: dict[str, Any] = {}

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer; a dummy until :meth:`open`."""
        if not self._is_open:
            return DummyExperiment()
        if self._experiment is None:
            from visionzoo.tasks.engine.event_file import EventWriter

            self._experiment = EventWriter(self.log_dir)
        return self._experiment

    @rank_zero_only
    def open(self) -> None:
        """Begin to write, first of all the options of the task."""
        from torch.utils.tensorboard.summary import hparams

        self._is_open = True
        for summary in hparams(self._sanitize_params(self._options), {}):
            self.experiment._get_file_writer().add_summary(summary)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the options for :meth:`open`; TensorBoard shows them under HPARAMS."""
        self._options = dict(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one point of each value; a second time for the same step passes."""
        if self._last != (step, dict(metrics)):
            self._last = step, dict(metrics)
            super().log_metrics(metrics, step)

    def save(self) -> None:
        """Write no ``hparams.yaml``: the configuration is in ``config.yaml``."""
