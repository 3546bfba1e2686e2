"""TensorBoard: every event lands in the run directory itself, so that a run keeps its own name there."""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from metarun.errors import UserError
from metarun.tracking import atomic, figures

Hyper = bool | int | float | str


class TensorBoard:
    """Scalars, text, pictures and the hyperparameter table of one run."""

    def __init__(self, run_dir: Path, purge_step: int | None) -> None:
        """Open an event file; on resume, events at `purge_step` and later are forgotten."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import: only where it is used

        self.run_dir = run_dir
        self.ended = True
        with _errors_told(run_dir):
            self.writer = SummaryWriter(run_dir, purge_step=purge_step, flush_secs=10)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write scalars."""
        with _errors_told(self.run_dir):
            for tag, value in values.items():
                self.writer.add_scalar(tag, value, step)

    def text(self, tag: str, content: str) -> None:
        """Show `content` as it is: indented, because Markdown would fold the lines of YAML into one."""
        with _errors_told(self.run_dir):
            self.writer.add_text(tag, textwrap.indent(content, "    "), 0)

    def picture(self, tag: str, images: Tensor, left: int = 0) -> None:
        """Show a picture [C, H, W], or a grid [rows, cols, C, H, W] with a gap after `left` columns."""
        with _errors_told(self.run_dir):
            self.writer.add_image(tag, images if images.ndim == 3 else figures.grid(images, left), 0)

    def curve(self, tag: str, test: dict[str, Any]) -> None:
        """Show the scores of a meta-test by adaptation step."""
        import numpy as np
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        # add_figure would import pyplot, and with it a global list of figures
        canvas = FigureCanvasAgg(figures.adaptation_curve(test))
        canvas.draw()
        with _errors_told(self.run_dir):
            self.writer.add_image(tag, np.asarray(canvas.buffer_rgba())[..., :3], 0, dataformats="HWC")

    def hparams(self, hparams: dict[str, Hyper]) -> None:
        """Enter this run in the table of runs, whose other columns are the last values of all scalars.

        An experiment summary, which could choose columns, is not written: TensorBoard reads that of one run and
        applies it to all, so that the table would lack what runs of another algorithm have.
        """
        from tensorboard.plugins.hparams import summary_v2

        self._summary(summary_v2.hparams_pb(hparams, trial_id=""))  # without an id the run's name stands there
        self.ended = False

    def close(self, status: str = "completed") -> None:
        """Note how the run ended in the table of runs, and write what is pending."""
        with contextlib.suppress(OSError, UserError):  # a full disk has been reported where it was met
            if not self.ended:
                self._end(status)
            self.writer.close()

    def _end(self, status: str) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        code = api_pb2.STATUS_SUCCESS if status == "completed" else api_pb2.STATUS_FAILURE
        info = plugin_data_pb2.SessionEndInfo(status=code, end_time_secs=time.time())
        kind = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
        value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=kind, tensor=metadata.NULL_TENSOR)
        self._summary(Summary(value=[value]))
        self.ended = True

    def _summary(self, summary: Any) -> None:
        with _errors_told(self.run_dir):
            self.writer._get_file_writer().add_summary(summary)


@contextlib.contextmanager
def _errors_told(run_dir: Path) -> Iterator[None]:
    """The writer's thread hands its OSError (a full disk, mostly) to the next call: say it in one line."""
    try:
        yield
    except OSError as error:
        raise atomic.cannot_write(run_dir, error) from error
