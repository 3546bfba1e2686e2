"""metrics.jsonl and result.json: always valid JSON, and no step twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from metarun.errors import UserError
from metarun.tracking.jsonl import JsonLines, write_json


def strict(text: str) -> dict[str, object]:
    """Parse as a strict reader does: NaN is not JSON."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def steps(path: Path) -> list[object]:
    return [strict(line)["step"] for line in path.read_text().splitlines()]


def write(path: Path, last: int) -> None:
    lines = JsonLines(path, None)
    for step in range(1, last + 1):
        lines.log(step, {"train/loss": 1 / step})
    lines.close()


def test_each_line_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "m.jsonl", None)
    lines.log(3, {"train/loss": 0.5})
    row = strict((tmp_path / "m.jsonl").read_text())
    assert (row["step"], row["train/loss"]) == (3, 0.5)
    assert row["time"] > 1.7e9
    lines.close()


def test_resume_drops_later_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, 10)
    with path.open("a") as file:
        file.write('{"step": 4, "train/lo')
    lines = JsonLines(path, 6)
    lines.log(7, {"train/loss": 0.0})
    lines.close()
    assert steps(path) == [1, 2, 3, 4, 5, 6, 7]


def test_a_line_torn_just_before_its_end_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    JsonLines(path, 5).log(3, {})
    assert steps(path) == [1, 3]


def test_resume_without_a_file_starts_one(tmp_path: Path) -> None:
    JsonLines(tmp_path / "m.jsonl", 5).log(6, {})
    assert steps(tmp_path / "m.jsonl") == [6]


def test_nan_and_infinity_become_null(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    JsonLines(path, None).log(1, {"a": float("nan"), "b": float("-inf"), "c": 1.0})
    row = strict(path.read_text())
    assert (row["a"], row["b"], row["c"]) == (None, None, 1.0)


def test_a_full_disk_is_one_line_and_close_stays_quiet(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "m.jsonl", None)
    lines.file.close()
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, a disk that is always full")
    lines.file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(UserError, match=r"m\.jsonl: No space left on device\. Free some space"):
        lines.log(1, {})
    lines.close()


def test_write_json_is_indented_valid_and_nested(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"test": {"by_step": [{"step": 0, "accuracy": float("nan")}]}, "pair": (1, 2), "name": "mäml"})
    assert strict(path.read_text()) == {
        "test": {"by_step": [{"step": 0, "accuracy": None}]},
        "pair": [1, 2],
        "name": "mäml",
    }
    assert '\n  "test": {' in path.read_text()


def test_write_json_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    write_json(tmp_path / "result.json", {"status": "old"})
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "result.json", {"status": "new"})
    assert strict((tmp_path / "result.json").read_text()) == {"status": "old"}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_validation_that_is_made_again_is_not_there_twice(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "m.jsonl", None)
    for step, tag in ((2, "train/loss"), (2, "val/loss"), (4, "train/loss"), (4, "val/loss"), (6, "train/loss")):
        lines.log(step, {tag: 0.5})
    lines.close()
    JsonLines(tmp_path / "m.jsonl", 4, validated=False).log(4, {"val/loss": 0.25})
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [(row["step"], row.get("val/loss")) for row in rows] == [(2, None), (2, 0.5), (4, None), (4, 0.25)]
