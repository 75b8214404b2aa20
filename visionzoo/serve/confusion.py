"""What the classifier takes for what: the matrix of its run, as the report draws it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from visionzoo.runs.answers import HeldOutAnswers, read_answers
from visionzoo.runs.folder import RunFolder
from visionzoo.serve.bounds import Refused
from visionzoo.terminal import shell_quoted, visible_name


class Confusion:
    """The answers of a run for held-out images, read when they are first asked for."""

    def __init__(self, source: str, *, exported: bool, multi_label: bool) -> None:
        """
        Args:
            source: folder of the classifier.
            exported: whether it is one of ``visionzoo export``.
            multi_label: whether its images have several labels each.
        """
        self._source, self._exported, self._multi_label = source, exported, multi_label
        self._reading = threading.Lock()
        self._found: HeldOutAnswers | None = None

    def shown(self, address: str) -> dict[str, Any]:
        """``html`` and ``data`` as :func:`visionzoo.report.shell.fragment` gives them, or ``why`` there are none.

        Args:
            address: of the pictures, before the number of each.
        """
        if why := self._lacking():
            return {"why": why}
        try:
            found = self._read()
        except (OSError, ValueError) as error:
            return {"why": f"What it answered in training cannot be shown: {error}"}
        from visionzoo.report.answers_part import AnswerImages, matrix_parts
        from visionzoo.report.components import ImagePool
        from visionzoo.report.shell import fragment

        pool = ImagePool()
        return fragment(matrix_parts(AnswerImages(found, pool, lambda row: f"{address}/{row}")), pool)

    def picture(self, row: int) -> tuple[bytes, str]:
        """A picture, and ``webp``, ``png`` or ``jpeg``.

        Raises:
            Refused: 404 for a row without one.
        """
        from visionzoo.report.components import picture_kind

        pictures = [] if self._lacking() else self._read().rows["picture"]
        picture = pictures[row] if 0 <= row < len(pictures) else None
        if picture is None:
            raise Refused(404, f"there is no picture of answer {row}")
        return bytes(picture), picture_kind(picture)

    def _lacking(self) -> str:
        """Why there is nothing to show; nothing where there is."""
        if self._exported:
            return "An export has no answers of its run. Give the run with --classify to see what it takes for what."
        if self._multi_label:
            return "Images have several labels each: there is no matrix."
        if not RunFolder(self._source).answers.is_file():
            command = f"visionzoo train classify fit --resume {shell_quoted(self._source)}"
            return (
                f"{visible_name(Path(self._source).name)} has no answers.parquet, which says what it takes for what; "
                f"{command} looks at the held-out images again."
            )
        return ""

    def _read(self) -> HeldOutAnswers:
        with self._reading:
            if self._found is None:
                self._found = read_answers(RunFolder(self._source).answers)
            return self._found
