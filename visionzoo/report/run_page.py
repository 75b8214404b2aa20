"""``report.html`` of a run: what its folder holds, on one page. Neither the model nor the data are needed."""

from __future__ import annotations

import csv
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from visionzoo.report.answers_part import (
    AnswerImages,
    class_parts,
    image_parts,
    matrix_parts,
    percent,
    reliability_parts,
)
from visionzoo.report.charts import number
from visionzoo.report.components import (
    FactList,
    ImagePool,
    Listing,
    PageSection,
    Paragraph,
    SortedTable,
    TableCell,
    Tile,
    Tiles,
)
from visionzoo.report.curves_part import curve_parts
from visionzoo.report.gallery_part import gallery_parts, sheet_parts
from visionzoo.report.shell import write_page
from visionzoo.runs.answers import read_answers
from visionzoo.runs.folder import RunFolder
from visionzoo.runs.gallery import read_gallery
from visionzoo.runs.record import minutes_in_words, read_record
from visionzoo.terminal import visible_name
from visionzoo.text import parse_json

#: Rows of a list of bad samples, at most.
BAD = 500
#: How scores are called, and whether they are shares.
SCORES = {
    "accuracy": ("accuracy", True),
    "top5": ("top-5 accuracy", True),
    "map": ("mean average precision", True),
    "f1": ("F1", True),
    "loss": ("loss", False),
    "recall_mean": ("mean recall", True),
    "iou_1": ("mean IoU, 1 click", False),
    "iou_3": ("mean IoU, 3 clicks", False),
    "iou_5": ("mean IoU, 5 clicks", False),
    "iou_box": ("mean IoU, box", False),
    "iou_text": ("mean IoU, by name", False),
    "clicks_85": ("clicks to 85 %", False),
    "clicks_90": ("clicks to 90 %", False),
}


def write_report(run: str | Path | RunFolder) -> Path:
    """Write ``report.html`` into a run folder, from what the folder holds, and give its path.

    A part whose file is missing or damaged says so on the page, and how to get it.

    Raises:
        FileNotFoundError: if there is no such folder; ValueError: if it is not a run's.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    if not folder.record.is_file():  # of an evaluation there is nothing else
        folder = RunFolder.open(folder.path)
    page = _RunPage(folder)
    return write_page(folder.report, page.title, page.sections(), subtitle=page.subtitle, pool=page.pool)


class _RunPage:
    """What is read of a folder, once."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.pool = folder, ImagePool()
        self.missing: list[str] = []
        self.sessions = self._try(read_record, folder) or []
        self.config = self._json(folder.model_config)
        self.results = self._json(folder.results)
        self.fitted = self._json(folder.path / "fit.json")  #: of `visionzoo fit`
        self.answers = self._try(read_answers, folder.answers)
        self.images = None if self.answers is None else self._try(AnswerImages, self.answers, self.pool)
        self.title = visible_name(folder.path.resolve().name)

    @property
    def task(self) -> str:
        """As the export or the command says it."""
        known = str(self.config.get("task", ""))
        return {"simmim": "mae"}.get(known, known)

    @property
    def subtitle(self) -> str:
        """Task, backbone and data."""
        backbone = _as_dict(self.config.get("architecture")).get("backbone", "")
        data = _as_dict(self.sessions[-1].get("data")).get("path", "") if self.sessions else ""
        return " · ".join(visible_name(x) for x in (self.task, backbone, data) if x)

    def sections(self) -> list[PageSection]:
        """All of them; those without parts are left out by the page."""
        images, found = self.images, self.answers
        zero = "Zero-shot c" if self.task == "clip" else "C"
        parts = [
            PageSection("curves", "Curves", curve_parts(self.folder) if self.folder.config_yaml.is_file() else []),
            PageSection("matrix", f"{zero}onfusion matrix", matrix_parts(images) if images else []),
            PageSection("images", "Images", image_parts(images) if images else []),
            *self._galleries(),
            PageSection("classes", "Classes", class_parts(self.folder.per_class, images)),
            PageSection("probabilities", "Probabilities", reliability_parts(found) if found else []),
            PageSection("tried", "What was tried", self._tried()),
            PageSection("bad", "Bad samples", self._bad_samples()),
            PageSection("run", "What was run", self._what_was_run()),
        ]
        return [PageSection("result", "Result", self._result()), *parts]

    # ---- what is read -----------------------------------------------------------------------------------------------

    def _try(self, read: Any, *args: Any) -> Any:
        """What ``read`` gives; None where the file is missing or damaged, which is said on the page."""
        try:
            return read(*args)
        except FileNotFoundError:
            return None
        except (ValueError, OSError, csv.Error) as error:
            self.missing.append(str(error))
            return None

    def _json(self, path: Path) -> dict[str, Any]:
        return _as_dict(self._try(lambda: parse_json(path.read_bytes(), str(path))))

    def _galleries(self) -> list[PageSection]:
        """What tasks have drawn, by the name of its part of the page."""
        by_section: dict[str, list[Any]] = {}
        for path in sorted(self.folder.path.glob("*.parquet")):
            if path != self.folder.answers and (gallery := self._try(read_gallery, path)) is not None:
                parts = self._try(gallery_parts, gallery, path.stem) or []
                by_section.setdefault(gallery.about.section, []).extend(parts)
        if sheets := self._try(sheet_parts, self.folder.sheets):
            by_section.setdefault(next(iter(by_section), "Sheets"), []).extend(sheets)
        return [PageSection(f"pictures-{i}", name, parts) for i, (name, parts) in enumerate(by_section.items())]

    # ---- sections ---------------------------------------------------------------------------------------------------

    def _result(self) -> list[Any]:
        known = _as_dict(self.results.get("scores"))
        tiles = [_tile(name, known[name]) for name in sorted(known, key=lambda name: name == "loss")]
        if self.answers is not None:
            about = self.answers.about
            rows = len(self.answers.rows["label"])
            tiles.append(
                Tile("held-out images", f"{about.images:,}", f"{rows:,} with a row" if rows < about.images else "")
            )
            before, *after = map(percent, about.calibration_error)
            hint = f"{before} without a temperature" if after else ""
            tiles.append(Tile("calibration error", after[0] if after else before, hint))
        if minutes := self._minutes():
            tiles.append(Tile("training", f"{minutes} min"))
        parts: list[Any] = [Tiles(tiles)] if tiles else []
        if which := self.results.get("which"):
            parts.append(Paragraph(f"Of the weights that were exported: {which}.", "note"))
        return [*parts, *self._what_is_missing()]

    def _what_is_missing(self) -> list[Any]:
        """Files that could not be read, or that an earlier version did not write, and how to get them."""
        parts: list[Any] = [Paragraph(text, "warning") for text in self.missing]
        if self.task == "classify" and self.config.get("multi_label"):
            parts.append(Paragraph("Images have several labels each: there is no matrix.", "note"))
        lacking = [path.name for path in (self.folder.results, *self._wanted()) if not path.is_file()]
        if lacking:
            parts.append(
                Paragraph(
                    f"The folder has no {' and no '.join(lacking)}, so parts of this page are missing. "
                    f"`visionzoo train {self.task or 'TASK'} fit --resume {self.folder.path}` looks at the held-out "
                    "data again, if there are any, and trains nothing where the run has reached its end.",
                    "note",
                )
            )
        return parts

    def _wanted(self) -> list[Path]:
        """What a run of this task leaves for its page."""
        if self.task == "classify":
            return [] if self.config.get("multi_label") else [self.folder.answers]
        pictures = {
            "mae": self.folder.reconstruction,
            "ssl": self.folder.views,
            "clip": self.folder.retrieval,
            "segment": self.folder.masks_sheet,
        }
        return [pictures[self.task].with_suffix(".parquet")] if self.task in pictures else []

    def _minutes(self) -> str:
        return minutes_in_words([*self.sessions, self.fitted])

    def _tried(self) -> list[Any]:
        """What `visionzoo fit` has tried."""
        kinds = {"tried": False, "setting": False, "accuracy": True, "images": True, "minutes": True, "": False}
        rows = []
        for trial in map(_as_dict, _as_list(self.fitted.get("trials"))):
            values = [trial.get(k) for k in ("name", "setting", "accuracy", "images", "minutes", "note")]
            if trial.get("accuracy") is None:  # nothing was measured
                values[2:5] = [None, None, None]
            texts = [percent(v) if k == 2 and isinstance(v, float) else _text(v) for k, v in enumerate(values)]
            rows.append([TableCell(visible_name(text)) for text in texts])
        caption = "Accuracy on training images that a trial was not fitted on."
        return [SortedTable("tried", caption, list(kinds.items()), rows)] if rows else []

    def _bad_samples(self) -> list[Any]:
        parts: list[Any] = []
        for path, columns, caption in (
            (
                self.folder.bad_samples,
                ("sample", "split", "reason"),
                "Images that could not be read, and were left out.",
            ),
            (
                self.folder.nonfinite,
                None,
                "Samples of steps that were left out, since loss or gradient was not finite.",
            ),
        ):
            rows = self._try(_read_csv, path)
            if not rows:
                continue
            names = columns or tuple(rows[0])
            cells = [[TableCell(visible_name(row.get(name) or "")) for name in names] for row in rows[:BAD]]
            more = f" The first {BAD} of {len(rows):,}; the rest are in {path.name}." if len(rows) > BAD else ""
            table = SortedTable(path.stem, caption + more, [(n, False) for n in names], cells, searched=len(cells) > 15)
            parts.append(table)
        return parts or [Paragraph("None: every image could be read, and no step was left out.", "note")]

    def _what_was_run(self) -> list[Any]:
        parts: list[Any] = []
        for session in self.sessions[-1:]:
            parts.append(
                FactList(_facts(session, self.sessions, self._minutes()), frozenset({"command", "fingerprint"}))
            )
        if not self.sessions:
            parts.append(Paragraph(f"The folder has no {self.folder.record.name}, which says what was run.", "note"))
        if (text := self._try(lambda: self.folder.config_yaml.read_text(encoding="utf-8"))) is not None:
            parts.append(Listing("config.yaml", text))
        if self.config:
            import json

            shown = {k: v for k, v in self.config.items() if k not in ("labels", "calibration")}
            parts.append(
                Listing("config.json of the model, without labels", json.dumps(shown, indent=2, ensure_ascii=False))
            )
        return parts


def _as_dict(value: Any) -> dict[str, Any]:
    """``value``; nothing where a file holds something else."""
    return value if isinstance(value, dict) else {}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return "" if value is None else number(round(value, 2)) if isinstance(value, float) else str(value)


def _tile(name: str, value: Any) -> Tile:
    known, share = SCORES.get(name, (name.replace("_", " "), False))
    if recall := re.fullmatch(r"(image_to_text|text_to_image)_r(\d+)", name):
        known, share = f"{recall[1].replace('_', ' ')}, R@{recall[2]}", True
    text = "-" if not isinstance(value, int | float) else percent(value) if share else number(round(float(value), 4))
    return Tile(known, text)


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _facts(session: dict[str, Any], sessions: list[dict[str, Any]], minutes: str) -> list[tuple[str, str]]:
    """What a session of a run says of itself, in words."""
    machine, git, data, versions = (_as_dict(session.get(k)) for k in ("machine", "git", "data", "versions"))
    gpus = _as_list(machine.get("gpus")) or ["no GPU"]
    where = [machine.get("system"), machine.get("processor"), f"{machine.get('cpus')} CPUs", *gpus]
    again = f"; the last of {len(sessions)}, since it was resumed" if len(sessions) > 1 else ""
    rows = [
        ("command", session.get("command", "")),
        ("started", f"{_time(str(session.get('started', '')))}{again}"),
        ("minutes", minutes or "not recorded: the run was broken off, or is of an earlier version"),
        ("data", data.get("path", "")),
        ("fingerprint", data.get("fingerprint", "")),
        ("seed", session.get("seed")),
        ("machine", ", ".join(str(x) for x in where if x)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("commit", f"{git.get('commit', '')}{' and changes' if git.get('dirty') else ''}"),
        ("imports", ", ".join(map(str, _as_list(session.get("imports"))))),
    ]
    return [(name, str(text)) for name, text in rows if text not in ("", None)]


def _time(text: str) -> str:
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return text
