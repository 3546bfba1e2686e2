from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metarun.data import multimnist as module
from metarun.data.draw.table import TableData
from metarun.data.images import mnist
from metarun.data.multimnist import overlaid
from metarun.types import Head

CPU = torch.device("cpu")
Load = Callable[..., TableData]


@pytest.fixture
def small(small_mnist: Any, configured: Callable[..., Any], tmp_path: Path) -> Load:
    small_mnist.write(tmp_path)
    return lambda **keys: configured("multimnist", root=str(tmp_path), **keys).load(CPU)


def numbers(images: Tensor) -> Tensor:
    """How many pixels of the small MNIST's images are white: that is their number."""
    return (images > 0).flatten(1).sum(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_pixel_is_the_lighter_of_two_digits_on_the_canvas_and_resized_to_the_nearest() -> None:
    """Written out for one image, and resized by another library."""
    left, right = torch.randint(0, 256, (2, 3, 1, 28, 28), generator=seeded(), dtype=torch.uint8)
    found = overlaid(left, right)
    for m in range(3):
        canvas = torch.zeros(36, 36, dtype=torch.uint8)
        for i in range(28):
            for j in range(28):
                canvas[i, j] = left[m, 0, i, j]
        for i in range(28):
            for j in range(28):
                canvas[i + 6, j + 6] = max(int(canvas[i + 6, j + 6]), int(right[m, 0, i, j]))
        small = Image.fromarray(canvas.numpy()).resize((28, 28), Image.Resampling.NEAREST)
        assert found[m, 0].tolist() == np.asarray(small).tolist()


def test_each_image_of_a_split_is_once_the_left_and_once_the_right_digit_of_that_split(
    small: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, int] = {}  # left -> right

    def watched(left: Tensor, right: Tensor) -> Tensor:
        seen.update(zip(numbers(left).tolist(), numbers(right).tolist()))
        return overlaid(left, right)

    monkeypatch.setattr(module, "overlaid", watched)
    data = small()
    order = [*range(60), *range(100, 120)]  # the number of image m
    for rows in data.splits.values():
        members = {order[m] for m in rows.image.tolist()}
        assert {seen[m] for m in members} == members
        left = [order[m] for m in rows.image.tolist()]
        assert rows.targets["left"].tolist() == [n % 100 % 10 for n in left]
        assert rows.targets["right"].tolist() == [seen[n] % 100 % 10 for n in left]


def test_its_two_heads_are_classes_and_their_mean_accuracy_chooses_the_model(small: Load) -> None:
    data = small()
    assert data.splits["val"].heads == {"left": Head("class", 10), "right": Head("class", 10)}
    assert (data.shape, data.metric, data.offers) == ((1, 28, 28), "accuracy", ("episodes", "rows"))
    assert {name: len(rows.image) for name, rows in data.splits.items()} == {"train": 50, "val": 10, "test": 20}
    assert "mnist, the authors'" in data.protocol["split"]


def test_a_seed_makes_the_pairs_and_they_are_made_once(small: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = small(), small(pairs_seed=1)
    assert one.fingerprint != other.fingerprint
    assert not one.splits["train"].targets["right"].equal(other.splits["train"].targets["right"])
    monkeypatch.setattr(module, "_paired", lambda *_: pytest.fail("made twice"))
    assert small().fingerprint == one.fingerprint and small().images.equal(one.images)


def test_fashion_is_read_from_its_own_folder(small_mnist: Any, configured: Callable[..., Any], tmp_path: Path) -> None:
    small_mnist.write(tmp_path, folder="FashionMNIST/raw")
    data = configured("multimnist", root=str(tmp_path), source="fashion").load(CPU)
    assert data.protocol["split"].startswith("fashion, ")


def test_the_real_multimnist_has_60000_and_10000_images(configured: Callable[..., Any], shared: Path) -> None:
    if not (shared / "MNIST" / "raw").is_dir():
        pytest.skip("no ../shared/data/MNIST beside the project")
    data = configured("multimnist", root=str(shared)).load(CPU)
    assert {name: len(rows.image) for name, rows in data.splits.items()} == {"train": 55000, "val": 5000, "test": 10000}
    counts = [torch.bincount(data.splits["test"].targets[head]).tolist() for head in ("left", "right")]
    digits = mnist.digits("mnist", shared).labels[60000:]
    assert counts[0] == counts[1] == torch.bincount(digits).tolist()
