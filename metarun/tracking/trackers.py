"""All that watches a run: the console, the JSON lines and TensorBoard, told together."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from metarun.metrics import by_step, scores
from metarun.tracking.console import Console
from metarun.tracking.jsonl import JsonLines
from metarun.tracking.tensorboard import TensorBoard

FEW = 10  # heads, of which a matrix is written to a line

log = logging.getLogger("metarun")


class Trackers:
    """What is told to all of them; a rank or a repeated meta-test has the console alone."""

    def __init__(self, console: Console, lines: JsonLines | None, board: TensorBoard | None) -> None:
        self.console, self.lines, self.board = console, lines, board
        self.matrices: dict[str, tuple[Sequence[str], list[list[float]]]] = {}  # the last of each

    @staticmethod
    def of_test(steps: int, folder: Path) -> Trackers:
        """A repeated meta-test leaves the run's logs alone, and so does a rank that is not the first."""
        return Trackers(Console(steps, folder), None, None)

    @staticmethod
    def of_training(
        steps: int, folder: Path, step: int, max_seconds: float = math.inf, validated: bool = True
    ) -> Trackers:
        """`step` is where a resumed run goes on, and `validated` whether it had been validated there: what was logged
        after that is dropped."""
        lines = JsonLines(folder / "metrics.jsonl", step or None, validated)
        board = TensorBoard(folder, step + validated if step else None)
        return Trackers(Console(steps, folder, step, max_seconds), lines, board)

    @contextmanager
    def closing(self, record: dict[str, Any]) -> Iterator[None]:
        """Closes everything at the end, telling TensorBoard how the run ended."""
        try:
            yield
        finally:
            self.console.close()
            if self.lines:
                self.lines.close()
            if self.board:
                self.board.close(record["status"])

    def begin(
        self,
        facts: dict[str, str],
        texts: dict[str, str],
        hparams: dict[str, bool | int | float | str],
        picture: Tensor | None,
        ways: Mapping[str, str],
    ) -> None:
        """The header, and in TensorBoard the config, the protocol and a picture of an episode.

        `ways` says what accuracies of `train` and of `val` are of, where that differs.
        """
        self.console.header(facts)
        self.console.ways = ways
        log.info("%s", ", ".join(f"{name}: {fact}" for name, fact in facts.items()))
        if self.board:
            for tag, text in texts.items():
                self.board.text(tag, text)
            self.board.hparams(hparams)
            self.board.notes = {f"{part}/accuracy": f"{way} tasks" for part, way in ways.items()}
            if picture is not None:
                self.board.picture("episode", picture)

    def step(self, step: int) -> None:
        self.console.step(step)

    def matrix(self, step: int, name: str, labels: Sequence[str], cells: list[list[float]]) -> None:
        self.matrices[name] = (labels, cells)

    def log(self, step: int, values: dict[str, float]) -> None:
        validated = any(name.startswith("val/") for name in values)
        self.console.log(step, values)
        if self.lines:
            new = {} if validated else self.matrices
            small = {f"{name}/matrix": cells for name, (_, cells) in new.items() if len(cells) <= FEW}
            self.lines.log(step, {**values, **small})
        if self.board:
            self.board.log(step, values)
        if validated:
            if self.board:
                for name, (labels, cells) in self.matrices.items():  # to draw one takes as long as several steps
                    self.board.matrix(step, name, labels, cells)
            log.info("step %d: %s", step, ", ".join(f"{name} {value:.4f}" for name, value in values.items()))

    def say(self, text: str) -> None:
        self.console.say(text)
        log.info("%s", text)

    def part(self, doing: str, done: int, total: int) -> None:
        self.console.part(doing, done, total)

    def result(self, record: dict[str, Any], file: Path | None = None) -> None:
        """The final table, the adaptation curve, and the scores that runs are compared by."""
        self.console.table(record, file)
        if self.board:
            if len(by_step(record["test"])) > 1:
                self.board.curve("test/adaptation", record["test"])
            values = {f"test/{name}": score.mean for name, score in scores(record["test"]).items()}
            self.board.log(record["steps"], values)
