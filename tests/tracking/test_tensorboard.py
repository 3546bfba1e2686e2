"""TensorBoard: what is logged is what TensorBoard reads back, under the run's own name."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups, metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from metarun.errors import UserError
from metarun.tracking.figures import episode_picture
from metarun.tracking.tensorboard import TensorBoard

BY_STEP = [{"step": k, "accuracy": {"mean": 0.5 + 0.1 * k, "ci95": 0.01, "tasks": 600}} for k in range(4)]


def fake_run(run_dir: Path, hparams: dict[str, Any], accuracy: float, status: str = "completed") -> None:
    board = TensorBoard(run_dir, None)
    board.hparams(hparams)
    board.text("config", "algo:\n  name: maml  # *not* emphasised\n")
    images = torch.rand(5, 1, 28, 28)
    board.picture("episode/train", episode_picture(images, images, ways=5))
    board.picture("episode/colour", torch.zeros(2, 3, 3, 84, 84, dtype=torch.uint8), left=1)
    for step in (10, 20, 30):
        board.log(step, {"train/loss": 1 / step, "val/accuracy": accuracy})
    board.curve("test/by_adaptation_step", {"by_step": BY_STEP})
    board.log(30, {"test/accuracy": accuracy})
    board.close(status)


def read(run_dir: Path) -> EventAccumulator:
    events = EventAccumulator(str(run_dir))
    events.Reload()
    return events


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "10-12-33_maml_omniglot"
    fake_run(folder, {"algo": "maml", "algo.first_order": True, "seed": 0}, accuracy=0.9)
    return folder


def test_every_event_lies_in_the_run_directory_itself(run_dir: Path) -> None:
    assert [path.name.startswith("events.out.tfevents.") for path in run_dir.rglob("*")] == [True]


def test_scalars_come_back_with_their_tags_and_steps(run_dir: Path) -> None:
    events = read(run_dir)
    assert set(events.Tags()["scalars"]) == {"train/loss", "val/accuracy", "test/accuracy"}
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (step, pytest.approx(1 / step)) for step in (10, 20, 30)
    ]


def test_pictures_and_curve_come_back(run_dir: Path) -> None:
    events = read(run_dir)
    assert set(events.Tags()["images"]) == {"episode/train", "episode/colour", "test/by_adaptation_step"}
    curve = events.Images("test/by_adaptation_step")[0]
    assert (curve.width, curve.height) == (768, 480)
    assert events.Images("episode/colour")[0].width > 3 * 84


def test_text_keeps_its_lines(run_dir: Path) -> None:
    (text,) = read(run_dir).Tensors("config/text_summary")
    assert text.tensor_proto.string_val == [b"    algo:\n      name: maml  # *not* emphasised\n"]


def test_the_start_of_a_run_carries_its_hparams_with_their_types(run_dir: Path) -> None:
    content = read(run_dir).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    hparams = metadata.parse_session_start_info_plugin_data(content).hparams
    assert (hparams["algo"].string_value, hparams["seed"].number_value) == ("maml", 0)
    assert hparams["algo.first_order"].WhichOneof("kind") == "bool_value"


@pytest.mark.parametrize(
    ("status", "code"),
    [("completed", api_pb2.STATUS_SUCCESS), ("failed", api_pb2.STATUS_FAILURE)],
)
def test_the_end_of_a_run_says_how_it_ended(tmp_path: Path, status: str, code: int) -> None:
    board = TensorBoard(tmp_path, None)
    board.hparams({"seed": 0})
    board.close(status)
    board.close(status)
    content = read(tmp_path).SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(content).status == code


def test_a_resumed_run_shows_no_step_twice(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path, None)
    for step in (1, 2, 3, 4):
        first.log(step, {"train/loss": 1.0})
    first.close()
    second = TensorBoard(tmp_path, purge_step=3)
    for step in (3, 4, 5):
        second.log(step, {"train/loss": 2.0})
    second.close()
    assert [(event.step, event.value) for event in read(tmp_path).Scalars("train/loss")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
        (4, 2.0),
        (5, 2.0),
    ]


def backend_of(outputs: Path) -> backend_context.Context:
    """What TensorBoard's server knows of these runs for its HParams page."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(outputs))
    multiplexer.Reload()
    return backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(outputs))))


def trials_of(outputs: Path) -> list[str]:
    """The names of the rows of that page's table."""
    asked = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=api_pb2.Status.values(), slice_size=100, include_metrics=True
    )
    handler = list_session_groups.Handler(RequestContext(), backend_of(outputs), "", asked)
    return [group.name for group in handler.run().session_groups]


def table_of(outputs: Path) -> api_pb2.Experiment:
    """The columns of that page's table."""
    context, request = backend_of(outputs), RequestContext()
    found = context.hparams_metadata(request, "")
    assert set(found) == {"0_maml", "1_protonet"}  # the runs' own names
    return context.experiment_from_metadata(request, "", True, found, [])


def test_a_sweep_over_two_algorithms_is_one_table(tmp_path: Path) -> None:
    fake_run(tmp_path / "0_maml", {"algo": "maml", "algo.inner_lr": 0.4, "ways": 5, "seed": 0}, accuracy=0.9)
    fake_run(tmp_path / "1_protonet", {"algo": "protonet", "ways": 5, "seed": 1}, accuracy=0.95)
    table = table_of(tmp_path)
    assert {metric.name.tag for metric in table.metric_infos} == {"train/loss", "val/accuracy", "test/accuracy"}
    assert {metric.name.group for metric in table.metric_infos} == {""}
    assert {(column.name, column.differs) for column in table.hparam_infos} == {
        ("algo", True),
        ("seed", True),
        ("algo.inner_lr", False),
        ("ways", False),
    }


def test_what_is_logged_is_there_to_read_at_once(tmp_path: Path) -> None:
    """A run that is killed now has in TensorBoard all that metrics.jsonl has."""
    threads = threading.active_count()
    board = TensorBoard(tmp_path, None)
    board.log(1, {"val/accuracy": 0.5})
    assert [(event.step, event.value) for event in read(tmp_path).Scalars("val/accuracy")] == [(1, 0.5)]
    board.log(2, {"val/accuracy": 0.75})
    assert [event.step for event in read(tmp_path).Scalars("val/accuracy")] == [1, 2]
    assert threading.active_count() == threads


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    board = TensorBoard(tmp_path, None)
    board.records = RecordWriter(io.FileIO("/dev/full", "wb"))
    with pytest.raises(UserError, match=r"^cannot write .*: No space left on device\. Free some space"):
        board.log(1, {"val/accuracy": 0.5})
    board.close()
    assert capfd.readouterr() == ("", "")


def test_a_note_stands_at_its_tag(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, None)
    board.notes = {"train/accuracy": "128-way tasks"}
    for step in (1, 2):
        board.log(step, {"train/loss": 1.0, "train/accuracy": 0.5})
    board.close()
    events = read(tmp_path)
    assert [event.step for event in events.Scalars("train/accuracy")] == [1, 2]
    assert events.SummaryMetadata("train/accuracy").summary_description == "128-way tasks"


def test_a_trial_of_the_table_is_named_by_what_its_sweep_varies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First, for the column is narrow; and two sweeps of the same keys are not one trial, whose mean would be shown."""
    monkeypatch.chdir(tmp_path)
    places = [f"outputs/sweeps/2026-01-01/{time}_maml" for time in ("10-00-00", "11-00-00")]
    for place in places:
        fake_run(Path(place) / "0_optim.lr=0.1", {"algo": "maml"}, accuracy=0.9)
    assert set(trials_of(tmp_path / "outputs")) == {f"0_optim.lr=0.1 in {place}" for place in places}


def test_an_unwritable_run_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the run directory should be")
    with pytest.raises(UserError, match=r"cannot write .*run: .*hydra\.run\.dir"):
        TensorBoard(tmp_path / "run", None)
