"""All trackers together: what a result leaves in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarun.tracking.trackers import Trackers


def events_of(folder: Path, steps: list[int], **changes: Any) -> EventAccumulator:
    """What TensorBoard reads after a meta-test of two heads that was judged at these adaptation steps."""
    accuracy, mse = ({"mean": mean, "ci95": 0.01, "tasks": 9} for mean in (0.5, 0.25))
    row = {"accuracy": accuracy, "heads": {"digit": {"accuracy": accuracy}, "ink": {"mse": mse}}}
    test = {**row, "by_step": [{"step": step, **row} for step in steps], **changes}
    record = {"status": "completed", "steps": 20, "data": "digits", "protocol": {"adapt_steps": max(steps)}}
    trackers = Trackers.of_training(20, folder, 0)
    with trackers.closing(record):
        trackers.result(record | {"test": test})
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_scores_of_heads_stand_beside_the_overall_ones(tmp_path: Path) -> None:
    events = events_of(tmp_path, [0, 1])
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == {
        "test/accuracy": [(20, 0.5)],
        "test/digit/accuracy": [(20, 0.5)],
        "test/ink/mse": [(20, 0.25)],
    }


@pytest.mark.parametrize(("taken", "pictures"), [(0, []), (1, ["test/adaptation"])])
def test_who_does_not_adapt_has_no_adaptation_curve(tmp_path: Path, taken: int, pictures: list[str]) -> None:
    assert events_of(tmp_path, [0, 1], adapt_steps=taken).Tags()["images"] == pictures
