"""Read text that a person hands in: one home for encodings. This module imports nothing from visionzoo.

UTF-8 with or without a byte order mark, and UTF-16 and UTF-32 are read. Anything else is refused with the line: one
byte per character says nothing of its alphabet, and a guess would be learned from.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

_MARKS = (  # the longer ones first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_END = re.compile("\r\n|\r|\n")
_LONE = re.compile("[\ud800-\udfff]")


def read_text(path: str | os.PathLike[str], *, keep_bytes: bool = False) -> str:
    """The text of a file, see :func:`decode_text`."""
    return decode_text(Path(path).read_bytes(), os.fspath(path), keep_bytes=keep_bytes)[0]


def decode_text(data: bytes, where: str, *, keep_bytes: bool = False) -> tuple[str, str]:
    """Text from bytes.

    Args:
        data: the bytes.
        where: what they are, for messages.
        keep_bytes: let bytes that are not UTF-8 pass as ``surrogateescape`` has it, since file names may hold them;
            :func:`check_text` finds those that stand elsewhere.

    Returns:
        the text without a byte order mark, and the name of its encoding.

    Raises:
        ValueError: for another encoding, with the first line that shows it, and how to convert.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None) or _without_mark(data)
    errors = "surrogateescape" if keep_bytes and encoding.startswith("utf-8") else "strict"
    try:
        return data.decode(encoding, errors), encoding  # the mark goes with these names of encodings
    except UnicodeDecodeError as error:
        if not encoding.startswith("utf-8"):
            raise ValueError(f"{where} begins as {encoding.upper()} and is damaged: {error.reason}") from error
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(_not_utf8(f"{where} line {line}", data[error.start : error.start + 1])) from error


def check_text(text: str, where: str) -> str:
    """``text``, which can be written as UTF-8.

    Raises:
        ValueError: for bytes that were not UTF-8, and for half of a character (a lone surrogate, as JSON can write it).
    """
    found = _LONE.search(text)
    if found is None:
        return text
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:
        raise ValueError(_not_utf8(where, bytes([code - 0xDC00])))
    raise ValueError(
        f"{where}: {text[:60]!a} holds half of a character (\\u{code:04x}), such as an emoji that was cut; remove it"
    )


def split_lines(text: str) -> list[str]:
    """Lines as an editor shows them. ``str.splitlines`` also breaks at U+2028 and others, which captions may hold."""
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def nfc(text: str) -> str:
    """Text in Unicode's composed form: macOS writes "é" as two characters, most others as one."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def parse_json(text: str | bytes, where: str) -> Any:
    """The value that JSON says.

    Raises:
        ValueError: for what is not JSON, numbers of thousands of digits, and brackets nested beyond the parser's depth.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply to be read") from error
    except ValueError as error:  # also of bytes that are not UTF-8
        raise ValueError(f"{where} is not JSON: {error}") from error


def _without_mark(data: bytes) -> str:
    """UTF-16 without a mark shows by the zero bytes of what is ASCII in it, a heading or a bracket."""
    head = data[:200]
    zeros = [head[k::2].count(0) for k in (0, 1)]
    if max(zeros) > len(head) // 4 and min(zeros) == 0:
        return "utf-16-le" if zeros[1] else "utf-16-be"
    return "utf-8"


def _not_utf8(where: str, byte: bytes) -> str:
    return (
        f"{where} is not UTF-8: byte 0x{byte.hex()}, which is {byte.decode('latin-1')!r} in Latin-1; save the file as "
        "UTF-8, for instance with: iconv -f latin1 -t utf-8 OLD > NEW"
    )


def read_numbers(text: str, counts: tuple[int, ...], form: str) -> list[float]:
    """Numbers with commas between them, as a person types a point or a box.

    Args:
        text: what was typed.
        counts: how many there may be.
        form: what is expected, for the message.

    Raises:
        ValueError: for another number of them, or what is none.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts:
        raise ValueError(f"{text[:80]!r} is not of the form {form}")
    return values
