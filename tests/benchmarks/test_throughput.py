"""The command itself, on its smallest workload, without the processes that it measures memory in."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, throughput
from benchmarks.session import Session, Silent
from benchmarks.workloads import WORKLOADS


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """record(systems): what the command writes."""
    monkeypatch.setattr(throughput, "alone", lambda function, *args: function(*args))
    monkeypatch.setattr(machine, "sgemm_rate", lambda device: 1e11)
    monkeypatch.setattr(machine, "convolution_rate", lambda device: 2e11)

    def measured(systems: str) -> dict[str, Any]:
        out = tmp_path / "rows.json"
        quick = ["--workloads", "W5", "--repeats", "1", "--seconds", "0.001", "--allocator", "default"]
        throughput.main([*quick, "--systems", systems, "--out", str(out)])
        return json.loads(out.read_text())

    return measured


def test_a_row_tells_rates_ratios_first_step_memory_and_share_of_the_peak(record: Callable[..., Any]) -> None:
    found = record("plain,vmap")
    assert found["machine"]["peak_gflops"] == 200 and found["machine"]["allocator"] == "default"
    plain, vmap = found["rows"]
    assert plain["end_to_end_x_plain"] == 1 and vmap["mapping"] == "vmap chunk 25" and vmap["tasks"] == 25
    assert vmap["compute_x_plain"] == pytest.approx(vmap["compute_tasks_per_s"] / plain["compute_tasks_per_s"])
    assert vmap["of_peak"] == pytest.approx(vmap["flops"] / vmap["compute_s"][0] / 2e11)
    assert min(vmap["first_s"], vmap["peak_mb"], vmap["flops"]) > 0


def test_what_cannot_be_measured_is_skipped_with_a_line(
    record: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "higher", None)  # as if it were not installed
    assert [row["system"] for row in record("higher,loop")["rows"]] == ["loop"]
    assert "higher: skipped: it cannot be imported" in capsys.readouterr().out


def test_a_session_stops_after_the_steps_asked_for_and_goes_on() -> None:
    session = Session.start([*WORKLOADS["W5"].overrides, "parallel=vmap", "device=cpu"], Silent())
    before = {name: p.clone() for name, p in session.state.params.items()}
    session.steps(2)
    session.steps(1)
    assert session.state.step == 3
    assert not any(p.equal(before[name]) for name, p in session.state.params.items())
