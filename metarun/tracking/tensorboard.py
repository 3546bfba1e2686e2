"""TensorBoard: every event lands in the run directory itself, so that a run keeps its own name there."""

from __future__ import annotations

import contextlib
import os
import socket
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from metarun.errors import UserError
from metarun.tracking import atomic, figures
from metarun.tracking.console import from_here

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHT = "weight/"  # of each head in the loss
Hyper = bool | int | float | str


class TensorBoard:
    """Scalars, text, pictures and the hyperparameter table of one run.

    Each is on disk as soon as it is logged. TensorBoard's own writer has a thread, which keeps events for a while, so
    that a killed run lacks them, and prints a traceback where the disk is full.
    """

    def __init__(self, run_dir: Path, purge_step: int | None) -> None:
        """Open an event file; on resume, events at `purge_step` and later are forgotten."""
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.run_dir = run_dir
        self.ended = True
        self.charted = False
        self.notes: Mapping[str, str] = {}  # what TensorBoard says of a tag, by tag
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self.records = RecordWriter((run_dir / name).open("wb"))
        except OSError as error:
            raise atomic.cannot_write(run_dir, error) from error
        self._write(0, file_version="brain.Event:2")
        if purge_step is not None:
            self._write(purge_step, session_log=SessionLog(status=SessionLog.START))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write scalars. The weights of heads stand together, as `weight/digit`, and in one chart in Custom Scalars."""
        from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, Summary, SummaryMetadata

        values = {_tag(name): value for name, value in values.items()}
        if not self.charted and any(tag.startswith(WEIGHT) for tag in values):
            self._chart()

        kind = SummaryMetadata.PluginData(plugin_name="scalars")
        notes = {
            tag: SummaryMetadata(plugin_data=kind, data_class=DATA_CLASS_SCALAR, summary_description=note)
            for tag, note in self.notes.items()
        }
        scalars = [Summary.Value(tag=t, simple_value=value, metadata=notes.get(t)) for t, value in values.items()]
        self._write(step, summary=Summary(value=scalars))

    def text(self, tag: str, content: str) -> None:
        """Show `content` as it is: indented, because Markdown would fold the lines of YAML into one."""
        from torch.utils.tensorboard import summary  # slow to import: only where it is used

        self._write(0, summary=summary.text(tag, textwrap.indent(content, "    ")))

    def matrix(self, step: int, name: str, labels: Sequence[str], cells: list[list[float]]) -> None:
        """Show what was measured of each pair of heads. Their mean has another tag: a picture and a scalar cannot share
        one."""
        self._figure(f"{name}/pairs", figures.pairs(labels, cells, name.rpartition("/")[2]), step)

    def picture(self, tag: str, images: Tensor, left: int = 0) -> None:
        """Show a picture [C, H, W], or a grid [rows, cols, C, H, W] with a gap after `left` columns."""
        self._image(tag, images if images.ndim == 3 else figures.grid(images, left), "CHW")

    def curve(self, tag: str, test: dict[str, Any]) -> None:
        """Show the scores of a meta-test by adaptation step."""
        self._figure(tag, figures.adaptation_curve(test))

    def hparams(self, hparams: dict[str, Hyper]) -> None:
        """Enter this run in the table of runs, whose other columns are the last values of all scalars.

        An experiment summary, which could choose columns, is not written: TensorBoard reads that of one run and
        applies it to all, so that the table would lack what runs of another algorithm have.
        """
        from tensorboard.plugins.hparams import summary_v2

        self._write(0, summary=summary_v2.hparams_pb(hparams, trial_id=self._trial()))
        self.ended = False

    def close(self, status: str = "completed") -> None:
        """Note how the run ended in the table of runs."""
        with contextlib.suppress(OSError, UserError):  # a full disk has been reported where it was met
            if not self.ended:
                self._end(status)
            self.records.close()

    def _trial(self) -> str:
        """The run's name in the table: first what tells the jobs of a sweep apart, for the column is narrow.

        It is the only one of its kind: of runs that share a name TensorBoard shows the mean.
        """
        return f"{self.run_dir.name} in {from_here(self.run_dir.parent)}"

    def _end(self, status: str) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        code = api_pb2.STATUS_SUCCESS if status == "completed" else api_pb2.STATUS_FAILURE
        info = plugin_data_pb2.SessionEndInfo(status=code, end_time_secs=time.time())
        kind = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
        value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=kind, tensor=metadata.NULL_TENSOR)
        self._write(0, summary=Summary(value=[value]))
        self.ended = True

    def _chart(self) -> None:
        """One chart of all weights."""
        from torch.utils.tensorboard import summary

        layout = {"balance": {"weight of each head": ["Multiline", [f"^{WEIGHT}"]]}}
        self._write(0, summary=summary.custom_scalars(layout))
        self.charted = True

    def _figure(self, tag: str, figure: Figure, step: int = 0) -> None:
        import numpy as np
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)  # add_figure would import pyplot, and with it a global list of figures
        canvas.draw()
        self._image(tag, np.asarray(canvas.buffer_rgba())[..., :3], "HWC", step)

    def _image(self, tag: str, image: Any, order: str, step: int = 0) -> None:
        from torch.utils.tensorboard import summary

        self._write(step, summary=summary.image(tag, image, dataformats=order))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        try:
            self.records.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())
            self.records.flush()
        except OSError as error:
            raise atomic.cannot_write(self.run_dir, error) from error


def _tag(name: str) -> str:
    """`train/digit/weight` -> `weight/digit`; any other name stays."""
    head, _, last = name.removeprefix("train/").rpartition("/")
    return f"{WEIGHT}{head}" if head and f"{last}/" == WEIGHT else name
