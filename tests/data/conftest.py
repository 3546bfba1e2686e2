"""Tiny collections with known content, real Omniglot where it is at hand, and a cache of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from metarun.data.draw.source import ImageData
from metarun.data.images.collection import Collection
from metarun.engine import progress

PROJECT = Path(__file__).parents[2]
SHARED = PROJECT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("own") / "cache"
    monkeypatch.setenv("METARUN_CACHE", str(folder))
    return folder


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What was told of slow work until it was closed: what it was, how much was done, and of how much."""
    found = []

    class Told:
        def __init__(self, doing: str, total: int) -> None:
            self.doing, self.done, self.total = doing, 0, total

        def reach(self, done: int) -> None:
            self.done = done

        def close(self) -> None:
            found.append((self.doing, self.done, self.total))

    monkeypatch.setattr(progress, "Meter", Told)
    return found


@pytest.fixture
def configured() -> Callable[..., Any]:
    return _configured


@pytest.fixture(scope="session")
def omniglot_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for every test of real Omniglot: it is decoded once."""
    yield tmp_path_factory.mktemp("omniglot-cache")


@pytest.fixture
def omniglot(omniglot_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ImageData]:
    """Loads the real Omniglot, with the YAML's defaults but for what is given."""
    root = SHARED / "omniglot-py"
    if not root.is_dir():
        pytest.skip("no ../shared/data/omniglot-py beside the project")
    monkeypatch.setenv("METARUN_CACHE", str(omniglot_cache))
    return lambda **keys: _configured("omniglot", root=str(root), **keys).load(torch.device("cpu"))


@pytest.fixture
def shared() -> Path:
    """Where real data lies, if it does."""
    return SHARED


@pytest.fixture
def photos() -> Path:
    folder = SHARED / "cifar10-photos"
    if not folder.is_dir():
        pytest.skip("no ../shared/data/cifar10-photos beside the project")
    return folder


@pytest.fixture
def numbered() -> Callable[..., Collection]:
    """Image m shows the number m; class c has counts[c] images, and groups[c]."""

    def make(counts: Sequence[int], groups: Sequence[str] | None = None) -> Collection:
        assert sum(counts) <= 256
        images = torch.arange(sum(counts), dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 3, 3)
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        names = tuple(f"class{c}" for c in range(len(counts)))
        return Collection.of(images, labels, names, tuple(groups or ("all",) * len(counts)))

    return make


def _configured(name: str, **keys: Any) -> Any:
    """A data set with the defaults of its YAML, but for what is given."""
    content = OmegaConf.load(PROJECT / "conf" / "data" / f"{name}.yaml")
    return instantiate(OmegaConf.merge(content.get("data", content), keys))
