from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import bigdata, machine


def test_a_set_on_disk_is_trained_from_beside_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "sgemm_rate", lambda device: 1e11)
    monkeypatch.setattr(machine, "convolution_rate", lambda device: 2e11)
    monkeypatch.setenv("METARUN_CACHE", "")  # set by the command, and put back by this
    tiny = ["data.size=8", "backbone.channels=[2,2,2,2]", "train.tasks=2", "data.queries=1"]
    quick = ["--gb", "0.01", "--repeats", "2", "--seconds", "0.01", "--allocator", "default", "--drop"]
    bigdata.main([*tiny, *quick, "--folder", str(tmp_path), "--out", str(tmp_path / "rows.json")])
    found = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert 0.009e9 < found["bytes"] < 0.011e9
    assert {name: len(rates) for name, rates in found["tasks_per_s"].items()} == {"memory": 2, "disk": 2}
    assert found["disk_to_memory"] > 0
    assert [file.name for file in tmp_path.iterdir()] == ["rows.json"]  # the set is gone again
