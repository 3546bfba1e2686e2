"""Checkpoints: a nested dict of tensors, numbers and strings, written whole or not at all."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from metarun.errors import UserError
from metarun.tracking import atomic

BROKEN = (RuntimeError, OSError, EOFError, LookupError, ValueError, pickle.UnpicklingError)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`; the checkpoint that was there survives any failure."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    atomic.replace(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in the file can run code."""
    try:
        return _read(path)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}. {_remedy(path)}.") from error
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}. Make it readable.") from error
    except BROKEN as error:
        raise UserError(f"{path} is cut short or not a checkpoint. {_remedy(path)}.") from error


def _read(path: Path) -> dict[str, Any]:
    state = torch.load(path, weights_only=True, map_location="cpu")
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a dict")
    return state


def _remedy(path: Path) -> str:
    """Name the sibling that can be loaded, if there is one."""
    for name in ("last.pt", "best.pt"):
        other = path.with_name(name)
        if other == path:
            continue
        try:
            _read(other)
        except BROKEN:
            continue
        return f"Use {other}, which can be read, or start the run anew"
    return "Start the run anew, or name a run directory that has checkpoints/last.pt"
