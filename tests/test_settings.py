"""Sections that belong to no group: their bounds and units."""

from __future__ import annotations

from typing import Any

import pytest

from metarun.errors import UserError
from metarun.settings import AT_LEAST, CHOSEN, SECTIONS, check_bounds, check_sections, seconds


def config() -> dict[str, Any]:
    return {"seed": 0, **{name: {"_target_": "x"} if name in CHOSEN else {} for name in SECTIONS}}


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1.5d", 129600), (12, 12), (None, float("inf"))]
)
def test_times_are_read_in_seconds(text: Any, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["soon", "-1s", "10 minutes", "h", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"train\.max_time"):
        seconds(text)


@pytest.mark.parametrize(("key", "least"), AT_LEAST.items())
def test_every_bound_holds(key: str, least: int) -> None:
    section, _, name = key.rpartition(".")

    def with_value(value: int) -> dict[str, Any]:
        return config() | {section: {name: value}} if section else config() | {name: value}

    check_bounds(with_value(least))
    with pytest.raises(UserError, match=f"{key}={least - 1} is too small"):
        check_bounds(with_value(least - 1))


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_that_is_gone_or_no_section_is_named(name: str) -> None:
    check_sections(config())
    for wrong in ({}, {name: 3}):
        with pytest.raises(UserError, match=name):
            check_sections({key: value for key, value in config().items() if key != name} | wrong)
