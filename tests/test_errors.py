"""The one error of the user."""

from __future__ import annotations

import os
from pathlib import Path

from metarun.errors import UserError, few, one_line, shown


def test_an_error_of_many_lines_is_told_in_one() -> None:
    assert one_line(ValueError("size mismatch:\n\tweight is [3],\n  must be [4]")) == (
        "size mismatch: weight is [3], must be [4]"
    )


def test_an_error_that_says_nothing_is_called_by_its_type() -> None:
    assert one_line(UserError()) == "UserError"


def test_a_path_is_shown_in_one_line_and_in_letters() -> None:
    assert shown("photos/Käse 1/ñ.png") == "photos/Käse 1/ñ.png"
    assert shown(os.fsdecode(b"caf\xe9/a\nb")) == r"caf\xe9/a\nb"
    assert shown("\x1b[31mred\u202e") == r"\x1b[31mred\u202e"
    assert shown(Path(shown(os.fsdecode(b"\xff")))) == r"\xff"


def test_of_many_words_the_first_are_told_and_the_others_counted() -> None:
    assert few(["a", "b"], 2) == "a, b" and few(list("abcde"), 2) == "a, b and 3 more"
