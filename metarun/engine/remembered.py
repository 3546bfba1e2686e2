"""What `parallel=auto` measured, kept in the cache: later runs of the same kind begin at once and map tasks alike."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import metarun
from metarun.engine.cache import cache_folder
from metarun.engine.device import processor
from metarun.engine.mapping import Parallel
from metarun.errors import one_line, shown
from metarun.types import MetaGradient, Params

log = logging.getLogger("metarun")


def situation(
    algo: MetaGradient, params: Params, sample: Any, candidates: Sequence[Parallel], device: torch.device, **more: Any
) -> dict[str, Any]:
    """All that decides which candidate is fastest, as JSON has it; `more` are the settings that no argument shows."""
    return {
        "machine": [processor(device), device.type, os.cpu_count(), torch.get_num_threads()],
        "versions": {"metarun": metarun.__version__, "torch": torch.__version__},
        "algo": traits(algo),
        "params": {name: _form(p) for name, p in params.items()},
        "sample": [_form(leaf) for leaf in tree_leaves(sample)],
        "candidates": [str(candidate) for candidate in candidates],
        **more,
    }


def traits(value: Any) -> Any:
    """An object's class, structure and switches. Left out are rates, which cost the same whatever they are: the fields
    annotated as float."""
    if isinstance(value, nn.Module):
        return repr(value)
    if is_dataclass(value):
        own = {f.name: traits(getattr(value, f.name)) for f in fields(value) if f.name not in _rates(type(value))}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **own}
    if isinstance(value, Mapping):
        return {str(key): traits(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [traits(one) for one in value]
    return value if isinstance(value, bool | int | str) else None


def _rates(kind: type) -> set[str]:
    try:
        hints = typing.get_type_hints(kind)
    except NameError:  # types imported for the type checker alone: then rates count, too
        return set()
    return {name for name, hint in hints.items() if float in (hint, *typing.get_args(hint))}


def _form(t: torch.Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"


def remembered(
    key: Mapping[str, Any],
    candidates: Sequence[Parallel],
    measure: Callable[[], tuple[Parallel, dict[str, float]]],
    anew: bool,
) -> tuple[Parallel, str]:
    """The mapping that an earlier run found fastest in this situation, else what `measure` finds; and a line on it.

    Of runs that measure at the same time the first to end decides for all. With `anew` this one decides.
    """
    text = json.dumps(key, sort_keys=True)
    entry = cache_folder() / "parallel" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if not anew and (known := _read(entry, key, candidates)):
        return known, _recalled(known)
    best, seconds = measure()
    if not anew and (known := _read(entry, key, candidates)):
        return known, _recalled(known)
    if seconds:  # else nothing fitted into memory, which may be another run's doing
        _write(entry, {"fastest": str(best), "seconds": seconds, "key": key})
    measured = ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in seconds.items())
    return best, f"{best} is fastest here ({measured} per meta-step)"


def _recalled(known: Parallel) -> str:
    return f"{known} was fastest here when it was measured (parallel=measure measures anew)"


def _read(entry: Path, key: Mapping[str, Any], candidates: Sequence[Parallel]) -> Parallel | None:
    try:
        found = json.loads(entry.read_text(encoding="utf-8"))
        if found["key"] == key:
            return {str(candidate): candidate for candidate in candidates}[found["fastest"]]
    except (OSError, ValueError, KeyError, TypeError):  # whatever is wrong with it, the remedy is to measure
        pass
    return None


def _write(entry: Path, content: dict[str, Any]) -> None:
    """Beside the entry, then renamed: whoever reads meanwhile sees a whole entry or none."""
    fresh = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        fresh.replace(entry)
    except OSError as error:
        log.warning("%s cannot be written (%s): parallel=auto measures again next time.", shown(entry), one_line(error))
