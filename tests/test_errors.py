"""The one error of the user."""

from __future__ import annotations

from metarun.errors import UserError, one_line


def test_an_error_of_many_lines_is_told_in_one() -> None:
    assert one_line(ValueError("size mismatch:\n\tweight is [3],\n  must be [4]")) == (
        "size mismatch: weight is [3], must be [4]"
    )


def test_an_error_that_says_nothing_is_called_by_its_type() -> None:
    assert one_line(UserError()) == "UserError"
