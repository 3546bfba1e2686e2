"""Decoded images on disk: a data set opens its files once, and later runs read or map one array."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarun.data.images.collection import Collection, Recipe
from metarun.data.images.mapped import SHARE, Mapped
from metarun.engine.cache import cache_folder
from metarun.engine.device import free_memory
from metarun.engine.lock import locked
from metarun.errors import UserError, one_line, shown

FORMAT = 1
LARGE = 2**30  # bytes: to read all of more than that at each start takes too long
CPU = torch.device("cpu")

log = logging.getLogger(__name__)


def cached(name: str, key: dict[str, Any], make: Callable[[], Recipe]) -> Collection:
    """The collection that `make` describes, from disk where an entry of this key is whole.

    Of processes that start together one makes it, and the others wait for it.
    """
    text = json.dumps({"format": FORMAT, "name": name, **key}, sort_keys=True)
    entry = cache_folder() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    found = _read(entry, text)
    if isinstance(found, Collection):
        return found
    with alone(entry.name, "decodes the same images"):
        found = _read(entry, text)  # another process may have been first
        if isinstance(found, Collection):
            return found
        if found:
            log.warning("The cache entry %s is damaged (%s): it is built anew.", shown(entry), found)
        return _made(entry, text, make)


@contextmanager
def alone(name: str, doing: str) -> Iterator[None]:
    """One process at a time, by a lock of this name in the cache; where the cache takes none, nobody waits."""

    def wait(holder: str) -> None:
        log.warning("Waiting for %s, which %s.", holder, doing)

    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(locked(cache_folder() / "locks" / name, wait))
        yield


def _made(entry: Path, text: str, make: Callable[[], Recipe]) -> Collection:
    try:
        return _write(entry, text, make())
    except OSError as error:
        found = _read(entry, text)
        if isinstance(found, Collection):  # where there are no locks, a twin process was first
            return found
        recipe = make()
        words = f"{shown(entry)} cannot be written ({one_line(error)})"
        _check_memory(recipe, words)
        log.warning("%s: the images are decoded again next time. METARUN_CACHE names another folder.", words)
        return recipe.in_memory()


def _check_memory(recipe: Recipe, reason: str) -> None:
    if _bytes(recipe) > SHARE * free_memory(CPU):
        raise UserError(
            f"{reason}, and {_bytes(recipe) / 1e9:.1f} GB of images are too many for memory. "
            "Make room for them, or name another folder in METARUN_CACHE."
        )


def _bytes(recipe: Recipe) -> int:
    return len(recipe.labels) * math.prod(recipe.shape)


def _read(entry: Path, text: str) -> Collection | str:
    """What the entry holds, or what is wrong with it: nothing where there is none."""
    try:
        if not os.path.isdir(entry):
            return ""
        manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
        images = _mapped(entry, entry)
        labels = torch.tensor(manifest["labels"], dtype=torch.int64)
        names, groups = tuple(manifest["names"]), tuple(manifest["groups"])
        if manifest["key"] == text:
            if images.array.nbytes > LARGE and manifest.get("written") == _written(entry):
                return Collection(images, labels, names, groups, manifest["fingerprint"])
            found = Collection.of(images, labels, names, groups)
            if manifest["fingerprint"] == found.fingerprint:
                return found
        return "its content does not match its manifest"
    except FileNotFoundError:
        return "a file is missing"
    except Exception as error:  # whatever is wrong with it, the remedy is the same
        return one_line(error)


def _mapped(folder: Path, entry: Path) -> Mapped:
    return Mapped(np.load(folder / "images.npy", mmap_mode="r"), entry / "images.npy", CPU)


def _written(folder: Path) -> int:
    """When: a file that was touched since is not taken at its word."""
    return (folder / "images.npy").stat().st_mtime_ns


def _write(entry: Path, text: str, recipe: Recipe) -> Collection:
    """Writes beside the entry, then renames: whoever reads meanwhile sees a whole entry or none."""
    fresh = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}")
    stale = fresh.with_name(f"{fresh.name}.stale")
    try:
        fresh.mkdir(parents=True)
        _write_images(fresh / "images.npy", recipe)
        images = _mapped(fresh, entry)
        made = Collection.of(images, recipe.labels, recipe.names, recipe.groups)
        manifest = {
            "key": text,
            "fingerprint": made.fingerprint,
            "labels": made.labels.tolist(),
            "names": made.names,
            "groups": made.groups,
            "written": _written(fresh),
        }
        (fresh / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        # A folder with files in it cannot be renamed over: the old entry, damaged or a twin, steps aside.
        if entry.exists():
            entry.rename(stale)
        fresh.rename(entry)
        return made
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)


def _write_images(path: Path, recipe: Recipe) -> None:
    """Piece by piece. Room for all of them is asked for first: to decode them may take hours."""
    if _bytes(recipe) > shutil.disk_usage(path.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(recipe.labels), *recipe.shape)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in recipe.pieces:
            file.write(piece.contiguous().numpy().data)
