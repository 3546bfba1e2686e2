"""A small MNIST in the authors' format, and the real one where it is at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.build import build
from metarun.data import mnist_tasks as module
from metarun.data.draw.table import TableData
from metarun.data.images import mnist
from metarun.errors import UserError
from metarun.settings import Job
from metarun.types import Head

CPU = torch.device("cpu")
Load = Callable[..., TableData]


@pytest.fixture
def small(small_mnist: Any, configured: Callable[..., Any], tmp_path: Path) -> Load:
    small_mnist.write(tmp_path)
    return lambda **keys: configured("mnist_tasks", root=str(tmp_path), **keys).load(CPU)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_image_has_a_digit_its_parity_and_its_ink(small: Load) -> None:
    data = small()
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


def test_any_of_the_heads_are_taken_in_the_order_given(small: Load) -> None:
    data = small(heads=["slant", "mod3"])
    rows = data.splits["test"]
    assert list(rows.heads.items()) == [("slant", Head("value", 1)), ("mod3", Head("class", 3))]
    assert rows.targets.keys() == rows.heads.keys() and data.metric == "slant/mse"
    digit = small(heads=["digit"]).splits["test"].targets["digit"]
    assert rows.targets["mod3"].equal(digit % 3)


def test_few_examples_are_so_many_of_each_digit_and_among_those_of_more(small: Load) -> None:
    whole, one, three = (small(examples=examples).splits for examples in (None, 1, 3))
    assert torch.bincount(three["train"].targets["digit"]).tolist() == [3] * 10
    assert {*one["train"].image.tolist()} < {*three["train"].image.tolist()} < {*whole["train"].image.tolist()}
    assert not one["train"].image.equal(small(examples=1, examples_seed=1).splits["train"].image)
    for split in ("val", "test"):
        assert one[split].image.equal(whole[split].image)
        assert one[split].targets["ink"].equal(whole[split].targets["ink"])


def test_more_examples_than_there_are_of_a_digit_are_refused(small: Load) -> None:
    fewest = int(torch.bincount(small().splits["train"].targets["digit"]).min())
    assert len(small(examples=fewest).splits["train"].image) == 10 * fewest
    with pytest.raises(UserError, match=rf"data\.examples={fewest + 1}: .* there are {fewest} training images"):
        small(examples=fewest + 1)


@pytest.mark.parametrize(
    ("heads", "metric"), [(["digit"], "accuracy"), (["ink"], "mse"), (["mod3", "ink"], "mod3/accuracy")]
)
def test_the_first_head_chooses_the_model(small: Load, heads: list[str], metric: str) -> None:
    assert small(heads=heads).metric == metric


@pytest.mark.parametrize("lean", [-0.5, 0.0, 0.25, 1.0])
def test_the_slant_of_a_line_is_its_slope_to_the_right(lean: float) -> None:
    """A column of ink, one pixel in each row, sheared."""
    up = torch.arange(9.0).flip(0)
    images = torch.zeros(1, 28, 28, dtype=torch.float64)
    place = 14 + lean * (up - 4)
    for y, x in enumerate(place.tolist()):  # a pixel between two others is parted among them
        left, part = int(x), x - int(x)
        images[0, y + 3, left] += 255 * (1 - part)
        images[0, y + 3, left + 1] += 255 * part
    assert float(module._slant(images)) == pytest.approx(lean, abs=1e-12)


def test_blank_images_and_single_rows_lean_nowhere() -> None:
    images = torch.zeros(2, 28, 28, dtype=torch.float64)
    images[1, 5, 3:20] = 255
    assert module._slant(images).tolist() == [0, 0]


@pytest.mark.parametrize("head", ["ink", "slant"])
def test_to_predict_the_mean_has_a_squared_error_of_one(small: Load, head: str) -> None:
    values = small(heads=[head]).splits["train"].targets[head].double()
    assert float(values.mean()) == pytest.approx(0, abs=1e-6)
    assert float(values.square().mean()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (["digit", "mod4"], "data.heads: there is no head mod4. Did you mean mod3?"),
        (["digit", "ink", "digit"], "data.heads names the head digit twice. Leave out one."),
        ([], "data.heads=[] names no head. There are: digit, ink, mod3, parity, slant."),
    ],
)
def test_heads_that_cannot_be_are_refused(small: Load, heads: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        small(heads=heads)
    assert str(error.value) == message


def test_fingerprints_tell_heads_and_splits_apart_and_images_are_decoded_once(
    small: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = small(heads=["digit"])
    monkeypatch.setattr(mnist, "_decode", lambda *_: pytest.fail("decoded twice"))
    data = [first, small(heads=["parity"]), small(heads=["digit", "parity"]), small(heads=["parity", "digit"])]
    assert len({one.fingerprint for one in data}) == 4
    assert len({one.episodes(split, 1, 0, 5).fingerprint for one in data for split in ("val", "test")}) == 8
    assert small(heads=["digit"]).fingerprint == first.fingerprint


def test_a_fixed_part_of_the_training_images_validates(small: Load) -> None:
    data = small()
    train, val, test = (set(data.splits[name].image.tolist()) for name in ("train", "val", "test"))
    assert (len(train), len(val)) == (50, 10) and train | val == set(range(60)) and test == set(range(60, 80))
    assert val != set(range(10)) and val != set(range(50, 60))
    assert "50/10/20 images" in data.protocol["split"] and data.protocol["rotations"] == "none"
    assert small(resident=False).splits["val"].image.equal(data.splits["val"].image)


def test_training_is_on_rows_that_all_heads_share(small: Load) -> None:
    data = small()
    assert (data.offers, data.metric) == (("episodes", "rows"), "digit/accuracy")
    drawn = data.tasks("rows", 64)
    batch = drawn.gather(drawn.draw(2, seeded()))
    assert batch.x.shape == (1, 128, 1, 28, 28)
    white = (batch.x > 0).flatten(2).sum(2)
    assert batch.y["digit"].equal(white % 10) and batch.y["parity"].equal(white % 2)
    assert not set(white.flatten().tolist()) & set(data.splits["val"].image.tolist())  # image m has m white pixels
    offers = r"data=mnist_tasks offers episodes and rows\. Take another"
    with pytest.raises(UserError, match=rf"^algo\.trains_on=group: {offers}"):
        data.tasks("group", 64)


def test_training_is_on_tasks_too_which_have_something_to_learn_from(small: Load) -> None:
    data = small()
    drawn = data.episodes("train", 1, 3, 4)
    episode = drawn.gather(drawn.draw(9, seeded()))
    white = (torch.cat([part.x for part in episode], 1) > 0).flatten(2).sum(2)  # image m has m white pixels
    assert white.shape == (9, 7) and all(len(set(task)) == 7 for task in white.tolist())
    assert set(white.flatten().tolist()) <= set(data.splits["train"].image.tolist())
    assert torch.cat([part.y["digit"] for part in episode], 1).equal(white % 10)
    with pytest.raises(UserError, match=r"^data\.shots=0 must be at least 1\. Raise it\."):
        data.episodes("train", 1, 0, 1)


def test_the_meta_test_sees_every_image_once(small: Load) -> None:
    drawn = small().episodes("test", 1, 0, 5)
    episode = drawn.gather(drawn.draw(4, seeded()))
    assert episode.support.x.shape == (4, 0, 1, 28, 28)
    assert sorted((episode.query.x > 0).flatten(2).sum(2).flatten().tolist()) == list(range(100, 120))


def test_images_from_disk_are_the_same(small: Load) -> None:
    found = [small(resident=resident).episodes("test", 1, 0, 5) for resident in (True, False)]
    assert [sampler.from_disk for sampler in found] == [False, True]
    one, other = (sampler.gather(sampler.draw(4, seeded())) for sampler in found)
    assert one.query.x.equal(other.query.x) and one.support.x.shape == other.support.x.shape


@pytest.mark.parametrize(
    ("shots", "queries", "message"),
    [
        (-1, 5, "test.shots=-1 must be at least 0"),
        (0, 0, "test.queries=0 must be at least 1"),
        (0, 11, "test.shots=0 with test.queries=11 needs 22 rows, for two tasks; mnist_tasks's test split has 20. "),
        (8, 13, "test.shots=8 with test.queries=13 needs 21 rows; mnist_tasks's test split has 20. Lower one"),
    ],
)
def test_tasks_that_cannot_be_are_refused(small: Load, shots: int, queries: int, message: str) -> None:
    with pytest.raises(UserError) as error:
        small().episodes("test", 1, shots, queries, "test")
    assert str(error.value).startswith(message)
    with pytest.raises(UserError, match=r"data\.ways=5: mnist_tasks has no classes to draw"):
        small().episodes("test", 5, 1, 1)


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


def test_statistics_of_a_support_set_are_refused_where_there_is_none(
    small_mnist: Any, job: Callable[..., Job], tmp_path: Path
) -> None:
    small_mnist.write(tmp_path)
    rows = (
        "data=mnist_tasks",
        f"data.root={tmp_path}",
        "data.queries=2",
        "algo=mtl",
        "device=cpu",
        "norm_stats=support",
    )
    with pytest.raises(UserError, match=r"^norm_stats=support: the test's tasks have no support rows.*data\.shots=0"):
        build(job(*rows))
    build(job(*rows, "backbone.norm=none"))  # nothing to normalise by
    build(job(*rows, "data.shots=2"))
