"""Checkpoints: a nested dict of tensors, numbers and strings, written whole or not at all."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from metarun.errors import UserError, one_line
from metarun.tracking import atomic

BROKEN = (
    *(RuntimeError, OSError, EOFError, LookupError, ValueError, OverflowError, MemoryError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error),
)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`; the checkpoint that was there survives any failure."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    atomic.replace(path, buffer.getvalue())


def load(path: Path, entries: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a checkpoint that has these entries, of these types, onto the CPU; nothing in the file can run code."""
    try:
        return _read(path, entries)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}. {_remedy(path, entries)}.") from error
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}. Make it readable.") from error
    except BROKEN as error:
        reason = one_line(error)
        raise UserError(f"{path} is damaged or not a checkpoint ({reason}). {_remedy(path, entries)}.") from error


def _read(path: Path, entries: Mapping[str, Any] | None) -> dict[str, Any]:
    """torch.load takes the content at its word; the archive that it is read from has a checksum of each part."""
    content = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(content) as archive:
        if part := archive.testzip():
            raise ValueError(f"the checksum of {part} is wrong")
    content.seek(0)
    state = torch.load(content, weights_only=True, map_location="cpu")
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, not a dict")
    for name, kind in (entries or {}).items():
        if not isinstance(state.get(name), kind):
            raise ValueError(f"its entry {name} is {'wrong' if name in state else 'missing'}")
    return state


def _remedy(path: Path, entries: Mapping[str, Any] | None) -> str:
    """Name the sibling that can be loaded, if there is one."""
    for name in ("last.pt", "best.pt"):
        other = path.with_name(name)
        if other == path:
            continue
        try:
            _read(other, entries)
        except BROKEN:
            continue
        return f"{other} is whole: copy it there, or start the run anew"
    return "Start the run anew, or name a run directory that has checkpoints/last.pt"
