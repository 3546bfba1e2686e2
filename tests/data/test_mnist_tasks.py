"""A small MNIST in the authors' format, and the real one where it is at hand."""

from __future__ import annotations

import gzip
import struct
import sys
import tracemalloc
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.data import mnist_tasks as module
from metarun.data.draw.table import TableData
from metarun.errors import UserError
from metarun.types import Head

CPU = torch.device("cpu")
Load = Callable[..., TableData]
SMALL, VAL = {"train": 60, "t10k": 20}, 10


def content(part: str) -> tuple[Tensor, Tensor]:
    """Image m of a part has m white pixels (of training) or m + 100 (of test) at its end; its digit is m % 10."""
    count = torch.arange(SMALL[part]) + (100 if part == "t10k" else 0)
    place = torch.arange(28 * 28).flip(0)
    return (place < count[:, None]).view(-1, 28, 28).byte() * 255, (torch.arange(SMALL[part]) % 10).byte()


def idx(array: Tensor) -> bytes:
    return struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.numpy().tobytes()


def write(root: Path, packed: bool = False) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in SMALL:
        for kind, array in zip(("images-idx3", "labels-idx1"), content(part)):
            data = idx(array)
            name = f"{part}-{kind}-ubyte"
            (raw / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return raw


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, configured: Callable[..., Any]) -> Load:
    monkeypatch.setattr(module, "PARTS", SMALL)
    monkeypatch.setattr(module, "VAL", VAL)
    return lambda root, **keys: configured("mnist_tasks", root=str(root), **keys).load(CPU)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def refused(small: Load, root: Path) -> str:
    with pytest.raises(UserError) as error:
        small(root)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_one_image_has_a_digit_its_parity_and_its_ink(small: Load, tmp_path: Path) -> None:
    write(tmp_path)
    data = small(tmp_path)
    assert data.shape == (1, 28, 28) and data.images.dtype == torch.uint8
    pixels = (data.images > 0).flatten(1).sum(1)  # white ones of each image: its number
    trained = pixels[data.splits["train"].image].double()
    for name, rows in data.splits.items():
        assert rows.heads == {"digit": Head("class", 10), "parity": Head("class", 2), "ink": Head("value", 1)}
        white = pixels[rows.image]
        number = white - (100 if name == "test" else 0)
        assert rows.targets["digit"].equal(number % 10) and rows.targets["parity"].equal(number % 2)
        ink = (white - trained.mean()) / (trained - trained.mean()).square().mean().sqrt()
        assert torch.allclose(rows.targets["ink"], ink[:, None].float(), atol=1e-5)


def test_to_predict_the_mean_ink_has_a_squared_error_of_one(small: Load, tmp_path: Path) -> None:
    write(tmp_path)
    ink = small(tmp_path).splits["train"].targets["ink"].double()
    assert float(ink.mean()) == pytest.approx(0, abs=1e-6) and float(ink.square().mean()) == pytest.approx(1, abs=1e-6)


def test_a_fixed_part_of_the_training_images_validates(small: Load, tmp_path: Path) -> None:
    write(tmp_path)
    data = small(tmp_path)
    train, val, test = (set(data.splits[name].image.tolist()) for name in ("train", "val", "test"))
    assert (len(train), len(val)) == (50, 10) and train | val == set(range(60)) and test == set(range(60, 80))
    assert val != set(range(10)) and val != set(range(50, 60))
    assert "50/10/20 images" in data.protocol["split"] and data.protocol["rotations"] == "none"
    assert small(tmp_path, resident=False).splits["val"].image.equal(data.splits["val"].image)


def test_training_is_on_rows_that_all_heads_share(small: Load, tmp_path: Path) -> None:
    write(tmp_path)
    data = small(tmp_path)
    assert (data.offers, data.metric) == (("rows",), "digit/accuracy")
    drawn = data.tasks("rows", 64)
    batch = drawn.gather(drawn.draw(2, seeded()))
    assert batch.x.shape == (1, 128, 1, 28, 28)
    white = (batch.x > 0).flatten(2).sum(2)
    assert batch.y["digit"].equal(white % 10) and batch.y["parity"].equal(white % 2)
    assert not set(white.flatten().tolist()) & set(data.splits["val"].image.tolist())  # image m has m white pixels
    with pytest.raises(UserError, match=r"^algo\.trains_on=group: data=mnist_tasks offers rows\. Take another"):
        data.tasks("group", 64)
    with pytest.raises(UserError, match=r"^algo\.trains_on=episodes: data=mnist_tasks offers rows\. Take another"):
        data.episodes("train", 1, 1, 1)


def test_the_meta_test_sees_every_image_once(small: Load, tmp_path: Path) -> None:
    write(tmp_path)
    drawn = small(tmp_path).episodes("test", 1, 0, 5)
    episode = drawn.gather(drawn.draw(4, seeded()))
    assert episode.support.x.shape == (4, 0, 1, 28, 28)
    assert sorted((episode.query.x > 0).flatten(2).sum(2).flatten().tolist()) == list(range(100, 120))


def test_images_from_disk_are_the_same(small: Load, tmp_path: Path) -> None:
    write(tmp_path)
    found = [small(tmp_path, resident=resident).episodes("test", 1, 0, 5) for resident in (True, False)]
    assert [sampler.from_disk for sampler in found] == [False, True]
    one, other = (sampler.gather(sampler.draw(4, seeded())) for sampler in found)
    assert one.query.x.equal(other.query.x) and one.support.x.shape == other.support.x.shape


def test_compressed_files_are_the_same_data(small: Load, tmp_path: Path) -> None:
    write(tmp_path / "plain")
    write(tmp_path / "packed", packed=True)
    plain, packed = (small(tmp_path / place) for place in ("plain", "packed"))
    assert plain.fingerprint == packed.fingerprint
    names = {data.episodes(split, 1, 0, 5).fingerprint for data in (plain, packed) for split in ("val", "test")}
    assert len(names) == 2  # val and test are not the same rows


def test_files_are_opened_once_until_they_change(small: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write(tmp_path)
    before = small(tmp_path)
    with monkeypatch.context() as closed:
        closed.setattr(module, "_read", lambda *_: pytest.fail("a file was read"))
        assert small(tmp_path).fingerprint == before.fingerprint
    _, labels = content("t10k")
    (raw / "t10k-labels-idx1-ubyte").unlink()
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(9 - labels)))
    assert small(tmp_path).fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ("shots", "queries", "message"),
    [
        (-1, 5, "test.shots=-1 must be at least 0"),
        (0, 0, "test.queries=0 must be at least 1"),
        (8, 13, "test.shots=8 with test.queries=13 needs 21 images; mnist_tasks's test split has 20. Lower one"),
    ],
)
def test_tasks_that_cannot_be_are_refused(small: Load, tmp_path: Path, shots: int, queries: int, message: str) -> None:
    write(tmp_path)
    with pytest.raises(UserError) as error:
        small(tmp_path).episodes("test", 1, shots, queries, "test")
    assert str(error.value).startswith(message)
    with pytest.raises(UserError, match=r"data\.ways=5: mnist_tasks has no classes to draw"):
        small(tmp_path).episodes("test", 5, 1, 1)


@pytest.mark.parametrize("damage", ["cut", "longer", "kind", "fewer", "packed"])
def test_a_damaged_file_is_named(small: Load, tmp_path: Path, damage: str) -> None:
    raw = write(tmp_path)
    path = raw / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[:-1],
            "longer": whole + b"\0",
            "kind": whole[:2] + b"\x0d" + whole[3:],
            "fewer": idx(content("train")[0][:59]),
            "packed": b"",
        }[damage]
    )
    if damage == "packed":
        path.unlink()
        path = path.with_name(f"{path.name}.gz")
        path.write_bytes(gzip.compress(whole)[:-20])
    error = refused(small, tmp_path)
    assert error.startswith(f"{path} ") and error.endswith("Remove it, and it is downloaded again.")
    assert ("is damaged" if damage == "packed" else "does not hold 60 x 28 x 28 bytes") in error


def test_no_more_is_unpacked_than_there_may_be(small: Load, tmp_path: Path) -> None:
    raw = write(tmp_path, packed=True)
    path = raw / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(content("t10k")[0]) + bytes(2**26)))
    tracemalloc.start()
    try:
        assert f"{path} does not hold 20 x 28 x 28 bytes" in refused(small, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_failed_download_leaves_nothing(small: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def original(root: str, download: bool) -> None:
        (Path(root) / "MNIST" / "raw").mkdir(parents=True)
        raise OSError("the network is gone")

    datasets = types.ModuleType("torchvision.datasets")
    datasets.MNIST = original  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    assert "its download failed (the network is gone)" in refused(small, tmp_path / "data")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.usefixtures("offline")
def test_without_torchvision_the_error_says_what_to_put_where(small: Load, tmp_path: Path) -> None:
    write(tmp_path / "data").joinpath("t10k-labels-idx1-ubyte").unlink()  # three files are not enough
    error = refused(small, tmp_path / "data")
    assert error.startswith(f"data.root={tmp_path / 'data'} has no MNIST, and its download failed (")
    assert "train-images-idx3-ubyte.gz" in error and str(tmp_path / "data" / "MNIST" / "raw") in error


def test_a_download_is_used_and_not_repeated(small: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def original(root: str, download: bool) -> None:
        calls.append(download)
        write(Path(root))

    datasets = types.ModuleType("torchvision.datasets")
    datasets.MNIST = original  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    assert len(small(tmp_path / "new").splits["test"].image) == 20
    small(tmp_path / "new")
    assert calls == [True]


def test_the_real_mnist(configured: Callable[..., Any], shared: Path) -> None:
    if not (shared / "MNIST" / "raw").is_dir():
        pytest.skip("no ../shared/data/MNIST beside the project")
    mnist = configured("mnist_tasks", root=str(shared))
    data = mnist.load(CPU)
    assert {name: len(rows.image) for name, rows in data.splits.items()} == {"train": 55000, "val": 5000, "test": 10000}
    assert torch.bincount(data.splits["test"].targets["digit"]).tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    drawn = data.episodes("test", 1, mnist.shots, mnist.queries)
    assert sorted(drawn.draw(100, seeded())["row"].flatten().tolist()) == list(range(10000))
    ink, images = data.splits["test"].targets["ink"][:, 0], data.images[data.splits["test"].image]
    darkness = images.float().mean((1, 2, 3))
    assert float(torch.corrcoef(torch.stack([ink, darkness]))[0, 1]) == pytest.approx(1, abs=1e-5)
