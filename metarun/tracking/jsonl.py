"""JSON files of a run: one line per logged step, and whole documents."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarun.tracking import atomic


class JsonLines:
    """metrics.jsonl: one JSON object per logged step, each on disk as soon as it is logged."""

    def __init__(self, path: Path, resume_step: int | None, validated: bool = True) -> None:
        """Start a file, or go on after `resume_step`: later lines and torn ones are dropped.

        So is a validation at that very step, if it is to be made again.
        """
        self.path = path
        kept = b"" if resume_step is None else _lines_until(path, resume_step, validated)
        atomic.replace(path, kept)
        self.file = path.open("ab", buffering=0)  # unbuffered: nothing is left to fail in close()

    def log(self, step: int, values: Mapping[str, float | list[list[float]]]) -> None:
        """Append one line; NaN and infinity become null, because JSON has no word for them."""
        row = {"step": step, "time": round(time.time(), 3), **values}
        rest = memoryview(_dumps(row).encode() + b"\n")
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            raise atomic.cannot_write(self.path, error) from error

    def close(self) -> None:
        """Close the file; a second time is harmless."""
        self.file.close()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    atomic.replace(path, _dumps(content, indent=2).encode() + b"\n")


def _lines_until(path: Path, step: int, validated: bool) -> bytes:
    """The whole lines of `path` up to and with `step`."""
    if not path.exists():
        return b""
    lines = [(line, _step_of(line)) for line in path.read_bytes().splitlines(keepends=True)]
    return b"".join(line for line, at in lines if at < step or (at == step and (validated or b'"val/' not in line)))


def _step_of(line: bytes) -> float:
    """The step that a line records; a torn or foreign line is later than any step."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _dumps(content: Any, indent: int | None = None) -> str:
    return json.dumps(_finite(content), indent=indent, allow_nan=False, ensure_ascii=False)


def _finite(content: Any) -> Any:
    """The same content with None in place of NaN and infinity."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
