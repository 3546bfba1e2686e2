"""Whatever was done to a folder of photos, it is taken, or refused with one line."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.hostile import KINDS, Mischief, photos
from metarun.errors import UserError


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """What waits for ever fails instead."""

    def stop(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """In a place of its own: links to its parents lead no farther."""
    yield tmp_path / "parent" / "photos"
    for place, folders, files in os.walk(tmp_path):  # what was closed is opened, so that it can be removed
        for path in (Path(place, name) for name in (*folders, *files)):
            if not path.is_symlink():
                path.chmod(0o700)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mischief", KINDS, ids=lambda kind: kind.__name__)
def test_a_hostile_folder_is_taken_or_refused_with_one_line(
    configured: Callable[..., Any], root: Path, mischief: Mischief, seed: int
) -> None:
    dice = random.Random(seed)
    mischief(photos(root, dice), dice)
    try:
        data = configured("folder", root=str(root), size=6, ways=1).load(torch.device("cpu"))
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 8000
    else:
        assert all(name.isprintable() for split in data.splits.values() for name in split.names)
        sampler = data.tasks("rows", 4)
        assert sampler.gather(sampler.draw(2, torch.Generator().manual_seed(0))).x.isfinite().all()


def test_all_kinds_are_listed() -> None:
    from benchmarks import hostile

    own = {
        value
        for name, value in vars(hostile).items()
        if callable(value) and getattr(value, "__module__", "") == hostile.__name__ and not name.startswith("_")
    }
    assert own - {hostile.photos, hostile.bare_png} == set(KINDS)
