"""A small MNIST in the authors' format: its files, found, downloaded and read."""

from __future__ import annotations

import gzip
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import pytest

from metarun.data.images import mnist as module
from metarun.data.images.mnist import digits
from metarun.errors import UserError


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)


def refused(root: Path) -> str:
    with pytest.raises(UserError) as error:
        digits("mnist", root)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_compressed_files_are_the_same_data(small_mnist: Any, tmp_path: Path) -> None:
    small_mnist.write(tmp_path / "plain")
    small_mnist.write(tmp_path / "packed", packed=True)
    plain, packed = (digits("mnist", tmp_path / place) for place in ("plain", "packed"))
    assert plain.fingerprint == packed.fingerprint


def test_files_are_opened_once_until_they_change(
    small_mnist: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = small_mnist.write(tmp_path)
    before = digits("mnist", tmp_path)
    with monkeypatch.context() as closed:
        closed.setattr(module, "_read", lambda *_: pytest.fail("a file was read"))
        assert digits("mnist", tmp_path).fingerprint == before.fingerprint
    _, labels = small_mnist.content("t10k")
    (raw / "t10k-labels-idx1-ubyte").unlink()
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(small_mnist.idx(9 - labels)))
    assert digits("mnist", tmp_path).fingerprint != before.fingerprint


@pytest.mark.parametrize("place", ["MNIST/raw", "FashionMNIST/raw", ""])
def test_files_lie_in_torchvision_s_folder_or_in_the_root_itself(small_mnist: Any, tmp_path: Path, place: str) -> None:
    small_mnist.write(tmp_path / "data", folder=place)
    source: Any = "fashion" if place.startswith("Fashion") else "mnist"
    assert digits(source, tmp_path / "data").labels[:11].tolist() == [*range(10), 0]


@pytest.mark.usefixtures("offline")
def test_one_data_set_is_not_taken_for_the_other(small_mnist: Any, tmp_path: Path) -> None:
    small_mnist.write(tmp_path / "data")
    with pytest.raises(UserError, match="has no FashionMNIST, and its download failed"):
        digits("fashion", tmp_path / "data")


@pytest.mark.parametrize("damage", ["cut", "longer", "kind", "fewer", "packed"])
def test_a_damaged_file_is_named(small_mnist: Any, tmp_path: Path, damage: str) -> None:
    raw = small_mnist.write(tmp_path)
    path = raw / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[:-1],
            "longer": whole + b"\0",
            "kind": whole[:2] + b"\x0d" + whole[3:],
            "fewer": small_mnist.idx(small_mnist.content("train")[0][:59]),
            "packed": b"",
        }[damage]
    )
    if damage == "packed":
        path.unlink()
        path = path.with_name(f"{path.name}.gz")
        path.write_bytes(gzip.compress(whole)[:-20])
    error = refused(tmp_path)
    assert error.startswith(f"{path} ") and error.endswith("Remove it, and it is downloaded again.")
    assert ("is damaged" if damage == "packed" else "does not hold 60 x 28 x 28 bytes") in error


def test_no_more_is_unpacked_than_there_may_be(small_mnist: Any, tmp_path: Path) -> None:
    raw = small_mnist.write(tmp_path, packed=True)
    path = raw / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(small_mnist.idx(small_mnist.content("t10k")[0]) + bytes(2**26)))
    tracemalloc.start()
    try:
        assert f"{path} does not hold 20 x 28 x 28 bytes" in refused(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_failed_download_leaves_nothing(small_mnist: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def original(root: str, download: bool) -> None:
        (Path(root) / "MNIST" / "raw").mkdir(parents=True)
        raise OSError("the network is gone")

    datasets = types.ModuleType("torchvision.datasets")
    datasets.MNIST = original  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    assert "its download failed (the network is gone)" in refused(tmp_path / "data")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.usefixtures("offline")
def test_without_torchvision_the_error_says_what_to_put_where(small_mnist: Any, tmp_path: Path) -> None:
    small_mnist.write(tmp_path / "data").joinpath("t10k-labels-idx1-ubyte").unlink()  # three files are not enough
    error = refused(tmp_path / "data")
    assert error.startswith(f"data.root={tmp_path / 'data'} has no MNIST, and its download failed (")
    assert "train-images-idx3-ubyte.gz" in error and str(tmp_path / "data" / "MNIST" / "raw") in error


def test_a_download_is_used_and_not_repeated(small_mnist: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def original(root: str, download: bool) -> None:
        calls.append(download)
        small_mnist.write(Path(root))

    datasets = types.ModuleType("torchvision.datasets")
    datasets.MNIST = original  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    assert len(digits("mnist", tmp_path / "new").labels) == 80
    digits("mnist", tmp_path / "new")
    assert calls == [True]
