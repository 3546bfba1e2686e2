from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metarun.data.draw.source import ImageData, split_classes
from metarun.data.draw.tasks import TaskSampler
from metarun.data.images.collection import Collection
from metarun.errors import UserError

Numbered = Callable[..., Collection]
GROUPS = ["b", "a", "b", "c", "a", "b", "c"]
COUNTS = [5, 3, 8, 2, 4, 1, 6]


def sampler(collection: Collection, shots: int, turned: bool = False) -> TaskSampler:
    classes = {"train": range(len(collection.names))}
    found = split_classes("numbers", collection, classes, {"train": turned}, {}).tasks("group", shots)
    assert isinstance(found, TaskSampler)
    return found


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(x: Tensor) -> Tensor:
    return (x[..., 0, 0, 0] * 255).round().long()


def test_a_group_is_a_task_with_a_head_of_its_size(numbered: Numbered) -> None:
    drawn = sampler(numbered(COUNTS, GROUPS), 4)
    assert {name: head.size for name, head in drawn.heads.items()} == {"a": 2, "b": 3, "c": 2}
    turned = sampler(numbered(COUNTS, GROUPS), 4, turned=True)
    assert {name: head.size for name, head in turned.heads.items()} == {"a": 8, "b": 12, "c": 8}


def test_a_row_has_a_target_in_its_own_head_only_and_it_is_right(numbered: Numbered) -> None:
    collection = numbered(COUNTS, GROUPS)
    drawn = sampler(collection, 40)
    batch = drawn.gather(drawn.draw(3, seeded()))
    assert batch.x.shape == (3, 40, 1, 3, 3)
    classes = collection.labels[numbers(batch.x)].flatten().tolist()
    for row, c in enumerate(classes):
        own = [other for other, group in enumerate(GROUPS) if group == GROUPS[c]]
        targets = {name: int(y.flatten()[row]) for name, y in batch.y.items()}
        assert targets.pop(GROUPS[c]) == own.index(c)
        assert set(targets.values()) == {-100}


def test_tasks_are_not_repeated_and_fewer_may_be_drawn(numbered: Numbered) -> None:
    drawn = sampler(numbered(COUNTS, GROUPS), 4)
    for seed in range(30):
        assert len(set(drawn.draw(2, seeded(seed))["task"].tolist())) == 2
    assert sorted(drawn.draw(9, seeded())["task"].tolist()) == [0, 1, 2]


def test_tasks_come_in_order_each_with_the_images_it_was_drawn_with(numbered: Numbered) -> None:
    """The draw written out, with the tasks as they fall."""
    drawn = sampler(numbered(COUNTS, GROUPS), 4)
    sizes, counts = drawn.sizes, drawn.split.counts
    fell_otherwise = 0
    for seed in range(30):
        generator = seeded(seed)
        task = torch.rand(3, generator=generator).topk(2).indices
        lots = torch.rand(2, 2, 4, generator=generator)
        way = (lots[0] * sizes[task, None]).long()
        image = (lots[1] * counts[(sizes.cumsum(0) - sizes)[task, None] + way]).long()
        draw = drawn.draw(2, seeded(seed))
        assert draw["task"][0] < draw["task"][1]
        place = [task.tolist().index(t) for t in draw["task"].tolist()]
        assert draw["way"].equal(way[place]) and draw["image"].equal(image[place])
        fell_otherwise += place == [1, 0]
    assert 0 < fell_otherwise < 30


def test_a_way_that_is_not_offered_is_refused_in_one_line(numbered: Numbered) -> None:
    data = split_classes("numbers", numbered([3]), {"train": [0]}, {"train": False}, {})
    with pytest.raises(UserError) as error:
        data.tasks("columns", 4)
    assert str(error.value) == (
        "algo.trains_on=columns: data=numbers offers episodes, group and rows. "
        "Take another data set, or an algorithm that trains on what this one offers."
    )


def test_every_class_and_image_is_reached_and_no_padding(numbered: Numbered) -> None:
    collection = numbered(COUNTS, GROUPS)
    drawn = sampler(collection, 6000)
    images = numbers(drawn.gather(drawn.draw(3, seeded())).x).flatten()
    seen = torch.bincount(images, minlength=sum(COUNTS)).float()
    # An image's chance is 1 / (tasks · classes of its task · images of its class): padding would swell image 0's.
    per_task = torch.tensor([GROUPS.count(group) for group in GROUPS])
    expected = (6000 / (per_task * torch.tensor(COUNTS)))[collection.labels]
    chi, freedom = float(((seen - expected) ** 2 / expected).sum()), len(seen) - 1
    assert chi < freedom + 5 * (2 * freedom) ** 0.5


def test_turned_tasks_keep_label_and_turn_together() -> None:
    images = torch.randint(0, 256, (4, 1, 5, 5), generator=seeded()).byte()
    collection = Collection.of(images, torch.arange(4), tuple("wxyz"), ("g", "h", "g", "h"))
    drawn = sampler(collection, 60, turned=True)
    batch = drawn.gather(drawn.draw(2, seeded()))
    for name, members in (("g", (0, 2)), ("h", (1, 3))):
        for x, label in zip(batch.x.flatten(0, 1), batch.y[name].flatten().tolist()):
            if label != -100:
                turned = torch.rot90(images[members[label % 2]], label // 2, (-2, -1))
                assert x.equal(turned.float() / 255)


def test_the_same_seed_draws_the_same_batch_whatever_else_happens(numbered: Numbered) -> None:
    drawn = sampler(numbered(COUNTS, GROUPS), 4)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = drawn.draw(2, seeded(5))
    assert torch.get_rng_state().equal(state)
    other = drawn.draw(2, seeded(5))
    assert all(one[key].equal(other[key]) for key in one)


def test_alphabets_of_omniglot_are_its_tasks(omniglot: Callable[..., ImageData]) -> None:
    drawn = omniglot(split="lake", rotations=False).tasks("group", 8)
    assert isinstance(drawn, TaskSampler)
    sizes = {name: head.size for name, head in drawn.heads.items()}
    assert len(sizes) == 25 and sum(sizes.values()) == len(drawn.split.counts)
    batch = drawn.gather(drawn.draw(25, seeded()))
    assert all(int((y >= 0).sum()) == 8 for y in batch.y.values())
