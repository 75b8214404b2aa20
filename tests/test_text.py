"""One home for encodings: what is read, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionzoo.text import check_text, decode_text, nfc, parse_json, read_text, split_lines

TEXT = "image,label\n1.jpg,chät 猫 🐱\n"


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("utf-32", "utf-32"),
    ],
)
def test_unicode_is_read_with_and_without_a_mark(tmp_path: Path, encoding: str, said: str) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode(encoding))
    assert read_text(tmp_path / "a.txt") == TEXT
    assert decode_text(TEXT.encode(encoding), "a.txt") == (TEXT, said)


def test_other_encodings_are_refused_with_the_line_and_the_way_out() -> None:
    data = "image,label\n1.jpg,cat\n2.jpg,chät\n".encode("latin-1")
    with pytest.raises(ValueError, match=r"a\.csv line 3 is not UTF-8: byte 0xe4, which is 'ä' in Latin-1.*iconv"):
        decode_text(data, "a.csv")
    kept, _ = decode_text(data, "a.csv", keep_bytes=True)
    assert kept.encode("utf-8", "surrogateescape") == data
    with pytest.raises(ValueError, match=r"a\.csv line 3 is not UTF-8"):
        check_text(kept, "a.csv line 3")
    with pytest.raises(ValueError, match="UTF-16 and is damaged"):
        decode_text("ab".encode("utf-16")[:-1], "a.csv")


def test_half_of_a_character_is_named() -> None:
    assert check_text("whole 🐱", "here") == "whole 🐱"
    with pytest.raises(ValueError, match=r"here: .*half of a character \(\\ud83d\)"):
        check_text("cat \ud83d", "here")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "{", b"\xff"])
def test_json_that_cannot_be_read_is_one_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"^x\.json is (nested too deeply|not JSON)"):
        parse_json(text, "x.json")


def test_lines_and_composed_letters() -> None:
    assert split_lines("a\r\nb\u2028c\rd\x85\ne") == ["a", "b\u2028c", "d\x85", "e"]
    assert split_lines("a\n\nb\n") == ["a", "", "b"]
    assert split_lines("") == []
    assert nfc("cafe\u0301") == "caf\u00e9"
