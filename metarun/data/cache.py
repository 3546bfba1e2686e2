"""Decoded images on disk: a data set opens its files once, and later runs read one array."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarun.data.images import Collection

FORMAT = 1

log = logging.getLogger(__name__)


def cached(name: str, key: dict[str, Any], make: Callable[[], Collection]) -> Collection:
    """The collection that `make` builds, from disk where an entry of this key is whole."""
    text = json.dumps({"format": FORMAT, "name": name, **key}, sort_keys=True)
    entry = _folder() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    found = _read(entry, text)
    if found is not None:
        return found
    made = make()
    try:
        _write(entry, text, made)
    except OSError as error:
        if not entry.exists():  # a twin process may have been first
            log.warning("%s cannot be written (%s): the images are decoded again next time.", entry, error)
    return made


def _folder() -> Path:
    if own := os.environ.get("METARUN_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "metarun"


def _read(entry: Path, text: str) -> Collection | None:
    try:
        if not entry.is_dir():
            return None
        manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
        images = torch.from_numpy(np.load(entry / "images.npy"))
        found = Collection.of(
            images,
            torch.tensor(manifest["labels"], dtype=torch.int64),
            tuple(manifest["names"]),
            tuple(manifest["groups"]),
        )
        if manifest["key"] == text and manifest["fingerprint"] == found.fingerprint:
            return found
        reason = "its content does not match its manifest"
    except FileNotFoundError:
        reason = "a file is missing"
    except Exception as error:  # whatever is wrong with it, the remedy is the same
        reason = " ".join(str(error).split()) or type(error).__name__
    log.warning("The cache entry %s is damaged (%s): it is built anew.", entry, reason)
    return None


def _write(entry: Path, text: str, collection: Collection) -> None:
    """Writes beside the entry, then renames: whoever reads meanwhile sees a whole entry or none."""
    fresh = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}")
    stale = fresh.with_name(f"{fresh.name}.stale")
    manifest = {
        "key": text,
        "fingerprint": collection.fingerprint,
        "labels": collection.labels.tolist(),
        "names": collection.names,
        "groups": collection.groups,
    }
    try:
        fresh.mkdir(parents=True)
        np.save(fresh / "images.npy", collection.images.numpy())
        (fresh / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        # A folder with files in it cannot be renamed over: the old entry, damaged or a twin, steps aside.
        if entry.exists():
            entry.rename(stale)
        fresh.rename(entry)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)
