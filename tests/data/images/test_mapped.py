from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from metarun.data.draw.source import ImageData, split_classes
from metarun.data.images import mapped
from metarun.data.images.collection import Collection
from metarun.data.images.mapped import Mapped, placed
from metarun.errors import UserError

CPU = torch.device("cpu")
CLASSES, EACH = 8, 6


def written(images: Tensor, folder: Path) -> Mapped:
    path = folder / "images.npy"
    np.save(path, images.numpy())
    return Mapped(np.load(path, mmap_mode="r"), path, CPU)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).byte()


def data(images: Tensor | Mapped, turned: bool) -> ImageData:
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    names = tuple(f"c{c}" for c in range(CLASSES))
    collection = Collection.of(images, labels, names, tuple("ab" * (CLASSES // 2)))
    return split_classes("noise", collection, {"train": range(CLASSES)}, {"train": turned}, {})


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 40, 40), (1, 2, 7)])
def test_samples_from_disk_are_those_from_memory(shape: tuple[int, ...], turned: bool, tmp_path: Path) -> None:
    images = noise(CLASSES * EACH, *shape)
    one, other = data(images, turned), data(written(images, tmp_path), turned)
    assert one.fingerprint == other.fingerprint and one.shape == other.shape
    kinds: list[Callable[[ImageData], Any]] = [
        lambda data: data.episodes("train", 5, 2, 3),
        lambda data: data.tasks("group", 7),
        lambda data: data.tasks("rows", 7),
    ]
    for kind in kinds:
        samplers = [kind(each) for each in (one, other)]
        assert [sampler.from_disk for sampler in samplers] == [False, True]
        drawn = [s.gather(s.draw(4, torch.Generator().manual_seed(1))) for s in samplers]
        leaves = [tree_leaves(sample) for sample in drawn]
        assert len(leaves[0]) > 1 and all(a.equal(b) and a.dtype == b.dtype for a, b in zip(*leaves))


def test_a_set_far_larger_than_memory_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    """100 GB with a hole for most of it."""
    path = tmp_path / "images.npy"
    shape = (5_000_000, 1, 142, 142)
    try:
        array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    except OSError:
        pytest.skip("the disk here takes no files with holes")
    array[4_999_999], array[77] = 3, 4
    del array
    images = Mapped(np.load(path, mmap_mode="r"), path, CPU)
    rows = torch.tensor([[4_999_999, 0], [77, 4_999_999]])
    assert images.read(rows)[:, 0, 141, 141].tolist() == [3, 0, 4, 3]


@pytest.mark.parametrize(
    ("resident", "free", "stays"),
    [("auto", 199, True), ("auto", 200, False), (False, 10**9, True), (True, 100, False)],
)
def test_what_fits_into_half_of_the_free_memory_is_taken_there(
    resident: Any, free: int, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = noise(4, 1, 5, 5)
    monkeypatch.setattr(mapped, "free_memory", lambda _: free)
    found = placed(written(images, tmp_path), CPU, resident)
    assert isinstance(found, Mapped) == stays
    assert torch.cat([*found.split(3)]).equal(images)


def test_too_much_for_memory_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "free_memory", lambda _: 99)
    with pytest.raises(UserError, match=r"data\.resident=true: the images take 0\.0 GB, .* Leave it at auto"):
        placed(written(noise(4, 1, 5, 5), tmp_path), CPU, True)


def test_images_without_a_file_are_in_memory_whatever_is_asked_for() -> None:
    assert isinstance(placed(noise(4, 1, 5, 5), CPU, False), Tensor)


def test_a_file_cut_short_is_told_and_a_file_replaced_is_none_the_worse(tmp_path: Path) -> None:
    images = noise(40, 3, 40, 40)
    found = written(images, tmp_path)
    os.rename(found.path, tmp_path / "old")  # as the cache does with a stale entry
    assert found.read(torch.tensor([39, 1])).equal(images[[39, 1]])
    os.truncate(tmp_path / "old", 1000)
    with pytest.raises(UserError, match=r"images\.npy was cut short while it was read\. Start again"):
        found.read(torch.tensor([39]))
    with pytest.raises(UserError, match="was cut short"):
        found.whole(CPU)


def test_every_image_that_is_read_is_told_of(tmp_path: Path, told: list[tuple[str, int, int]]) -> None:
    images = noise(mapped.PIECE + 3, 1, 2, 2)
    assert written(images, tmp_path).whole(CPU).equal(images)
    assert told == [("reading images", mapped.PIECE + 3, mapped.PIECE + 3)]
