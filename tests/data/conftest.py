"""Tiny collections with known content, real Omniglot where it is at hand, and a cache of the test's own."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from metarun.data.draw.source import ImageData
from metarun.data.images import mnist
from metarun.data.images.collection import Collection
from metarun.engine import progress

PROJECT = Path(__file__).parents[2]
SHARED = PROJECT.parent / "shared" / "data"
SMALL, VAL = {"train": 60, "t10k": 20}, 10  # images of the small MNIST


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


class SmallMnist(NamedTuple):
    """A small MNIST in the authors' format."""

    write: Callable[..., Path]  # write(root, packed, folder): the four files
    content: Callable[[str], tuple[torch.Tensor, torch.Tensor]]  # images and digits of "train" or "t10k"
    idx: Callable[[torch.Tensor], bytes]


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> SmallMnist:
    """Image m of a part has m white pixels (of training) or m + 100 (of test) at its end; its digit is m % 10."""
    monkeypatch.setattr(mnist, "PARTS", SMALL)
    monkeypatch.setattr(mnist, "VAL", VAL)
    return SmallMnist(_write_mnist, _mnist_content, _idx)


def _mnist_content(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    count = torch.arange(SMALL[part]) + (100 if part == "t10k" else 0)
    place = torch.arange(28 * 28).flip(0)
    return (place < count[:, None]).view(-1, 28, 28).byte() * 255, (torch.arange(SMALL[part]) % 10).byte()


def _idx(array: torch.Tensor) -> bytes:
    return struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.numpy().tobytes()


def _write_mnist(root: Path, packed: bool = False, folder: str = "MNIST/raw") -> Path:
    raw = root / folder
    raw.mkdir(parents=True)
    for part in SMALL:
        for kind, array in zip(("images-idx3", "labels-idx1"), _mnist_content(part)):
            data = _idx(array)
            name = f"{part}-{kind}-ubyte"
            (raw / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return raw


def _configured(name: str, **keys: Any) -> Any:
    """A data set with the defaults of its YAML, but for what is given."""
    content = OmegaConf.load(PROJECT / "conf" / "data" / f"{name}.yaml")
    return instantiate(OmegaConf.merge(content.get("data", content), keys))
