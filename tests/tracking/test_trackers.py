"""All trackers together: what a result leaves in TensorBoard."""

from __future__ import annotations

import json
import math
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


def told_of_heads(folder: Path, heads: list[str]) -> tuple[EventAccumulator, list[dict[str, Any]]]:
    """What is left of two windows of training, the second of which ends in a validation."""
    cells = [[1.0 if a == b else -0.25 for a in heads] for b in heads]
    cells[0][1] = math.nan
    trackers = Trackers.of_training(20, folder, 0)
    with trackers.closing({"status": "completed"}):
        for step in (10, 20):
            trackers.matrix(step, "train/cosine", heads, cells)
            trackers.log(step, {"train/loss": 1.0, "train/cosine": -0.25, **{f"train/{h}/weight": 0.5 for h in heads}})
        trackers.log(20, {"val/accuracy": 0.5})
    events = EventAccumulator(str(folder))
    events.Reload()
    return events, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_cosines_of_heads_are_a_picture_at_each_validation_and_numbers_in_every_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events, (first, second, validation) = told_of_heads(tmp_path, ["digit", "ink"])
    assert [event.step for event in events.Images("train/cosine/pairs")] == [20]
    assert [event.step for event in events.Scalars("train/cosine")] == [10, 20]
    tags = events.Tags()
    assert not set(tags["images"]) & set(tags["scalars"])  # TensorBoard would show the scalar alone
    assert first["train/cosine/matrix"] == second["train/cosine/matrix"] == [[1.0, None], [-0.25, 1.0]]
    assert first["train/cosine"] == -0.25 and "train/cosine/matrix" not in validation


def test_a_matrix_of_many_heads_stands_in_no_line(tmp_path: Path) -> None:
    _, lines = told_of_heads(tmp_path, [f"head{i}" for i in range(11)])
    assert not [name for line in lines for name in line if name.endswith("matrix")]


def test_weights_of_heads_stand_together_in_tensorboard_and_not_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events, lines = told_of_heads(tmp_path, ["digit", "g0/c0"])
    assert {tag for tag in events.Tags()["scalars"] if "weight" in tag} == {"weight/digit", "weight/g0/c0"}
    assert lines[0]["train/g0/c0/weight"] == 0.5
    assert "weight" not in capsys.readouterr().out


def test_all_weights_have_one_chart(tmp_path: Path) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    events, _ = told_of_heads(tmp_path, ["digit", "ink"])
    (event,) = events.Tensors(metadata.CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    (chart,) = layout.category[0].chart
    assert list(chart.multiline.tag) == ["^weight/"]
