"""What two splits share is found, by name and by content, upright and turned; what they do not share is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metarun.check.splits import disjoint
from metarun.data.draw.source import ImageData, split_classes
from metarun.data.draw.split import Turning
from metarun.data.images.collection import Collection
from metarun.data.sinusoid import Sinusoid

NAMES = ("a", "b", "c", "d", "e", "f")
EACH = 4  # images of a class


def pixels() -> Tensor:
    return torch.randint(0, 256, (len(NAMES) * EACH, 1, 5, 5), generator=torch.Generator().manual_seed(0)).byte()


def data(
    images: Tensor,
    classes: Mapping[str, Sequence[int]] = {"train": [0, 1], "val": [2, 3], "test": [4, 5]},
    turning: Turning = True,
) -> ImageData:
    labels = torch.arange(len(NAMES)).repeat_interleave(EACH)
    collection = Collection.of(images, labels, NAMES, ("all",) * len(NAMES))
    turned: dict[str, Turning] = {"train": turning, "val": turning, "test": False}
    return split_classes("drawn", collection, classes, turned, {})


@pytest.mark.parametrize("turning", [False, True, "episode"])
def test_an_honest_split_holds_and_its_images_count_once_however_they_are_turned(turning: Turning) -> None:
    honest = data(pixels(), turning=turning)
    outcome = disjoint(honest, honest)
    assert outcome.holds and "2/2/2 classes" in outcome.found and "24 images" in outcome.found


def test_a_class_of_two_splits_is_found() -> None:
    leaky = data(pixels(), {"train": [0, 1], "val": [2, 3], "test": [1, 4, 5]})
    outcome = disjoint(leaky, leaky)
    assert outcome.holds is False
    assert outcome.found == (
        "1 classes of two splits, as b of train and test; 4 images that are, turned or not, "
        "an image of another split, as test's b has one of train's b"
    )


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize(("owner", "other", "told"), [(5, 1, "test's f has one of train's b"), (2, 0, "val's c has")])
def test_an_image_of_two_splits_is_found_in_any_turn(turns: int, owner: int, other: int, told: str) -> None:
    images = pixels()
    images[owner * EACH + 2] = images[other * EACH].rot90(turns, (-2, -1))
    leaky = data(images)
    outcome = disjoint(leaky, leaky)
    assert (
        outcome.holds is False
        and outcome.found.startswith("1 images that are, turned or not")
        and told in outcome.found
    )


def test_what_one_split_has_twice_is_no_leak() -> None:
    images = pixels()
    images[1] = images[0]
    doubled = data(images)
    assert disjoint(doubled, doubled).holds


def test_other_data_may_call_a_class_alike_but_not_show_the_same_image() -> None:
    images, others = pixels(), 255 - pixels()
    assert disjoint(data(images), data(others, {"test": [0, 1]})).holds
    others[0] = images[0].rot90(1, (-2, -1))
    assert disjoint(data(images), data(others, {"test": [0, 1]})).holds is False


def test_there_is_nothing_to_compare_where_there_are_no_images() -> None:
    curves = Sinusoid(1, 5, 5, 3.14, 2, 0).load(torch.device("cpu"))
    assert disjoint(curves, curves).holds is None


def test_a_random_campaign_finds_every_leak_and_raises_no_alarm() -> None:
    dice = torch.Generator().manual_seed(1)
    for _ in range(20):
        order = torch.randperm(len(NAMES), generator=dice).tolist()
        honest = data(pixels(), {"train": order[:2], "val": order[2:4], "test": order[4:]})
        assert disjoint(honest, honest).holds
        one, two = torch.randperm(3, generator=dice)[:2].tolist()
        place, source = (2 * part + int(torch.randint(2, (), generator=dice)) for part in (one, two))
        images = pixels()
        images[order[place] * EACH] = images[order[source] * EACH + 1].rot90(one, (-2, -1))
        leaky = replace(honest, images=data(images).images)
        assert disjoint(leaky, leaky).holds is False
