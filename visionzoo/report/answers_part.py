"""What a classifier answered for held-out images: the matrix, the classes, the images, and what the probabilities mean.

Legend: N images with a row, K classes.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from visionzoo.report.charts import Chart, ChartLine
from visionzoo.report.components import (
    Beside,
    ImagePool,
    Matrix,
    MatrixCell,
    Paragraph,
    PictureFigure,
    SortedTable,
    Strip,
    TableCell,
    embedded,
)
from visionzoo.runs.answers import HeldOutAnswers
from visionzoo.terminal import visible_name

#: Classes whose matrix is drawn; of more the most frequent confusions are listed.
MATRIX_CLASSES = 30
#: Confusions that are listed, at most.
PAIRS = 1000
#: Pictures of a strip.
SHOWN = 40
#: Bytes of all pictures, before they become text, which takes a third more. Those that come first are the most telling.
PICTURE_BYTES = 3_900_000


class AnswerImages:
    """The images of the record that have a picture, as the page shows them.

    Args:
        found: the record.
        pool: takes their pictures.
        address: of the picture of a row; None for one that holds the picture.
    """

    def __init__(self, found: HeldOutAnswers, pool: ImagePool, address: Callable[[int], str] | None = None) -> None:
        self.about, self.rows, self.pool, self._address = found.about, found.rows, pool, address
        self.names = [visible_name(name) for name in found.about.classes]
        self.figures: dict[int, PictureFigure] = {}
        self.numbers: dict[int, int] = {}  #: row -> number in the pool
        left = PICTURE_BYTES
        for row in self._by_worth():
            picture = self.rows["picture"][row]
            if len(picture) <= left:
                left -= len(picture)
                self.figures[row] = self._figure(row, picture)
                self.numbers[row] = pool.add(self.figures[row])

    def answer(self, row: int) -> int:
        """The class that was answered."""
        return self.rows["answers"][row][0]

    def sure(self, row: int) -> float:
        """Its probability."""
        return self.rows["probabilities"][row][0]

    def right(self, row: int) -> bool:
        """Whether it is the label."""
        return self.answer(row) == self.rows["label"][row]

    def _telling(self, row: int) -> float:
        """Low for sure mistakes, and for what is right and unsure."""
        return self.sure(row) if self.right(row) else -self.sure(row)

    def _by_worth(self) -> list[int]:
        """Rows with a picture: what is listed, then an equal share of each pair of label and answer, mistakes first."""
        have = [row for row, picture in enumerate(self.rows["picture"]) if picture is not None]
        mistakes = sorted((row for row in have if not self.right(row)), key=lambda row: -self.sure(row))
        until, times = self.rows["wrong_until"], self.rows["times_right"]
        self.late = sorted((r for r in have if self.right(r) and until[r] > 0), key=lambda r: (-until[r], times[r]))
        listed = [*mistakes[:SHOWN], *sorted(have, key=self.sure)[:SHOWN], *self.late[:SHOWN]]
        counts = {(label, answer): count for label, answer, count in self.about.matrix}
        seen: dict[tuple[int, int], int] = defaultdict(int)
        level = {}
        for row in sorted(have, key=self._telling):
            pair = self.rows["label"][row], self.answer(row)
            seen[pair] += 1
            level[row] = seen[pair] / counts.get(pair, 1) + self.right(row)
        return list(dict.fromkeys([*listed, *sorted(have, key=level.__getitem__)]))

    def _figure(self, row: int, picture: bytes) -> PictureFigure:
        name, label = visible_name(self.rows["sample"][row]), self.names[self.rows["label"][row]]
        answers = [
            (self.names[a], p) for a, p in zip(self.rows["answers"][row], self.rows["probabilities"][row], strict=True)
        ]
        tone, mark = ("right", "✓") if self.right(row) else ("wrong", "✗")
        lines = [(f"{mark} {answers[0][0]}, {percent(answers[0][1])}", tone)]
        if tone == "wrong":
            lines.append((f"label {label}", ""))
        lines += [(f"or {other}, {percent(p)}", "quiet") for other, p in answers[1:2] if p >= 0.005]
        lines.append((_short(name), "quiet"))
        alt = f"{name}: label {label}, predicted {answers[0][0]}"
        source = embedded(picture) if self._address is None else self._address(row)
        return PictureFigure(source, alt, lines, self.rows["position"][row])

    def open_group(self, key: str, title: str, members: Iterable[int], count: int) -> str:
        """Make ``key`` open the pictures of some rows; empty where none has one.

        Args:
            key: of the group.
            title: above the pictures.
            members: rows.
            count: images that there are, with a row or without.
        """
        with_picture = sorted((row for row in members if row in self.numbers), key=self._telling)
        if not with_picture:
            return ""
        some = f"{len(with_picture)} of {count:,} are shown" if len(with_picture) < count else ""
        order = "the surest first" if not self.right(with_picture[0]) else "the least sure first"
        self.pool.group(key, title, ", ".join(x for x in (some, order) if x), [self.numbers[r] for r in with_picture])
        return key


def matrix_parts(images: AnswerImages) -> list[Any]:
    """The confusion matrix, whose cells open their images; of many classes the most frequent confusions."""
    by_pair: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row in images.numbers:
        by_pair[images.rows["label"][row], images.answer(row)].append(row)
    totals: dict[int, int] = defaultdict(int)
    for label, _, count in images.about.matrix:
        totals[label] += count

    def says(label: int, answer: int, count: int) -> str:
        return f"label {images.names[label]}, predicted {images.names[answer]}: {_images(count)}"

    def opens(label: int, answer: int, count: int) -> str:
        key = f"pair-{label}-{answer}"
        return images.open_group(key, says(label, answer, count), by_pair[label, answer], count)

    known = range(len(images.names))
    labels, answers, left_out = list(known), list(known), ""
    if len(known) > MATRIX_CLASSES:  # fewer may occur: all CLIP's labels are asked for, whatever the images show
        labels = sorted(totals)
        answers = sorted({answer for _, answer, _ in images.about.matrix} | set(labels))
        left_out = " Classes without an image or a prediction are left out."
    if len(answers) > MATRIX_CLASSES or images.about.cells > len(images.about.matrix):
        return _pairs(images, totals, opens)
    cells: dict[tuple[int, int], MatrixCell] = {}
    for label, answer, count in images.about.matrix:
        shade = round(10 * (count / totals[label]) ** 0.5)  # a root, or single mistakes could not be seen
        key = opens(label, answer, count)
        cells[label, answer] = MatrixCell(count, shade, label == answer, key, says(label, answer, count))
    every = _images(images.about.images)
    caption = f"Rows are labels, columns predictions, of {every}. A cell opens its images.{left_out}"
    rows = [(images.names[label], [cells.get((label, answer)) for answer in answers]) for label in labels]
    matrix = Matrix(caption, [images.names[answer] for answer in answers], rows)
    return [Beside([matrix, *_pairs(images, totals, lambda t, a, _: cells[t, a].opens, 10)])]


def _pairs(images: AnswerImages, totals: dict[int, int], opens: Any, most: int = PAIRS) -> list[Any]:
    shown = {(images.rows["label"][row], images.answer(row)) for row in images.numbers}
    wrong = sorted((c for c in images.about.matrix if c[0] != c[1]), key=lambda c: (-c[2], c[:2] not in shown, c[:2]))
    if not wrong:
        return [Paragraph("No image was predicted wrongly.")]
    rows = []
    for label, answer, count in wrong[:most]:
        key = opens(label, answer, count)
        share = count / totals[label]
        rows.append(
            (
                TableCell(images.names[label]),
                TableCell(images.names[answer]),
                TableCell(f"{count:,}", count, key),
                TableCell(percent(share), share),
            )
        )
    more = f" The first {most:,} of {len(wrong):,}." if len(wrong) > most else ""
    columns = (("label", False), ("predicted", False), ("images", True), ("of the label", True))
    caption = f"What is taken for what, the most frequent first; a number opens its images.{more}"
    return [SortedTable("pairs", caption, columns, rows, searched=most == PAIRS)]


def class_parts(per_class: Path, images: AnswerImages | None) -> list[Any]:
    """Scores of each class, out of ``per_class.csv``."""
    try:
        with per_class.open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
        known = [[row["class"], *(row[c] for c in ("support", "recall", "precision", "f1"))] for row in table]
        rows = []
        by_label: dict[int, list[int]] = defaultdict(list)
        for row in images.numbers if images else ():
            by_label[images.rows["label"][row]].append(row)  # type: ignore[union-attr]
        for place, (name, support, *scores) in enumerate(known):
            key = ""
            if images is not None and place < len(images.names) and images.about.classes[place] == name:
                title = f"label {images.names[place]}: {_images(int(support))}"
                key = images.open_group(f"class-{place}", title, by_label[place], int(support))
            cells = [TableCell(percent(float(s)), float(s)) if s else TableCell("-", "") for s in scores]
            rows.append((TableCell(visible_name(name)), TableCell(f"{int(support):,}", int(support), key), *cells))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        return [Paragraph(f"{per_class.name} cannot be read: {type(error).__name__} {error}", "warning")]
    columns = (("class", False), ("images", True), ("recall", True), ("precision", True), ("F1", True))
    caption = "Recall is the share of a class's images that is found, precision the share of its answers that is right."
    return [SortedTable("classes", caption, columns, rows, searched=len(rows) > 15)]


def image_parts(images: AnswerImages) -> list[Any]:
    """The surest mistakes, the least sure answers, and what was learned last."""
    rows = list(images.figures)
    wrong = sorted((r for r in rows if not images.right(r)), key=lambda r: -images.sure(r))
    unsure = sorted(rows, key=images.sure)
    strips = [
        Strip("Most confident mistakes", "Wrong, and sure of it. Wrong labels are found here.", _some(images, wrong)),
        Strip("Least sure", "Right or wrong, with the lowest probability.", _some(images, unsure)),
    ]
    parts: list[Any] = [strip for strip in strips if strip.figures]
    if not wrong:
        parts.insert(0, Paragraph("No image was predicted wrongly."))
    return [*parts, *_slow(images)]


def _slow(images: AnswerImages) -> list[Any]:
    until, times = images.rows["wrong_until"], images.rows["times_right"]
    late = [row for row in images.late if row in images.figures]
    if images.about.validations < 2 or not late:
        return []
    figures = []
    for row in late[:SHOWN]:
        figure = images.figures[row]
        lines = [
            figure.lines[0],
            (f"wrong until epoch {until[row]}", ""),
            (f"right in {times[row]} of {images.about.validations}", "quiet"),
        ]
        figures.append(PictureFigure(figure.source, figure.alt, [*lines, figure.lines[-1]], figure.place))
    note = f"Right in the end, and wrong for longest in the {images.about.validations} validations before."
    return [Strip("Slowest to learn", note, figures)]


def _some(images: AnswerImages, rows: Sequence[int]) -> list[PictureFigure]:
    return [images.figures[row] for row in rows[:SHOWN]]


def reliability_parts(found: HeldOutAnswers) -> list[Any]:
    """What the probabilities mean: how often the answers of each confidence are right."""
    about = found.about
    lines = [ChartLine("as sure as right", [(0, 0), (100, 100)], "quiet", dashed=True)]
    names = (("as the model says it", "two"), ("with a temperature", "one"))
    for (name, tone), bins in zip(names, about.reliability, strict=False):
        points = [(100 * sure, 100 * right) for images, sure, right in bins if images]
        lines.append(ChartLine(name, points, tone, dots=True))
    span = (0.0, 100.0)
    chart = Chart(
        "reliability", "How often it is right, in %", lines, x_name="how sure it is, in %", bounds=span, across=span
    )
    text = f"The expected calibration error is {percent(about.calibration_error[0])} as the model says it"
    if about.temperature is not None and len(about.calibration_error) == 2:
        which = ""
        if about.cross_fitted:
            which = " (each half of the images by the temperature of the other half)"
        text += (
            f", and {percent(about.calibration_error[1])} with the temperature {about.temperature:.3g}{which}. Every "
            "probability on this page has the temperature, as those of `visionzoo predict` have."
        )
    else:
        text += ". No temperature was fitted: that takes a classifier and enough images."
    width = 100 / len(about.reliability[0])
    rows = [
        (
            TableCell(f"{width * i:.0f}-{width * (i + 1):.0f} %", i),
            *(cell for one in each for cell in _bin(one)),
        )
        for i, each in enumerate(zip(*about.reliability, strict=True))
        if any(one[0] for one in each)
    ]
    columns = [("how sure", False), ("images", True), ("right", True)]
    if len(about.reliability) == 2:
        columns += [("images, with temperature", True), ("right, with temperature", True)]
    return [
        Beside([chart, Paragraph(text)]),
        SortedTable("bins", "The points of the diagram", columns, rows, folded=True),
    ]


def _bin(values: tuple[float, float, float]) -> tuple[TableCell, TableCell]:
    images, _, right = values
    return TableCell(f"{images:,.0f}", images), TableCell(percent(right), right) if images else TableCell("-", "")


def percent(share: float) -> str:
    """``"97.3 %"``; what is not quite everything or nothing does not look so."""
    text = f"{100 * share:.1f}"
    if text == "100.0" and share < 1:
        text = "> 99.9"
    elif text == "0.0" and share > 0:
        text = "< 0.1"
    return f"{text} %".replace(" ", "\u00a0")  # which is not broken


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _short(name: str) -> str:
    """The last part of a path; the whole is in the alternative text, which is shown under the pointer."""
    last = re.split(r"[\\/]", name.rstrip("\\/"))[-1] or name
    return last if len(last) <= 32 else f"…{last[-30:]}"
