"""Values out of a file against the types that code expects."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from visionzoo.plain import check_types, is_a

Method = Literal["simclr", "moco"]


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        ("moco", Method, True),
        ("dino", Method, False),
        (1, Literal[True, 2], False),
        (None, Method | None, True),
        ([1, 2], list[int], True),
        ([1, "2"], list[int], False),
        ("12", list[int], False),
        ([1, 2], tuple[int, int], True),
        ([1, 2, 3], tuple[int, int], False),
    ],
)
def test_words_out_of_a_few_and_lists(value: Any, hint: Any, fits: bool) -> None:
    assert is_a(value, hint) == fits


def test_they_are_named_in_words() -> None:
    with pytest.raises(ValueError, match="method is 'dino', and must be one of simclr, moco or null"):
        check_types({"method": "dino"}, {"method": Method | None}, "config.json: architecture.")
    with pytest.raises(ValueError, match="sizes is 'x', and must be a list of whole numbers"):
        check_types({"sizes": "x"}, {"sizes": list[int]}, "")
