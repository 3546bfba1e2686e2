from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metarun.data.draw.episodes import EpisodeSampler
from metarun.data.draw.source import ImageData, Within, split_classes
from metarun.data.draw.split import Turning, in_words, pixels
from metarun.data.images.collection import Collection
from metarun.errors import UserError

Numbered = Callable[..., Collection]


def sampler(
    collection: Collection, ways: int, shots: int, queries: int, turned: Turning = False, within: Within = None
) -> EpisodeSampler:
    everything = {"train": range(len(collection.names))}
    data = split_classes("numbers", collection, everything, {"train": turned}, {}, within)
    return data.episodes("train", ways, shots, queries)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(x: Tensor) -> Tensor:
    """The images' numbers, which they show in every pixel."""
    return (x[..., 0, 0, 0] * 255).round().long()


def uniform(counts: Tensor) -> bool:
    """χ² within five standard deviations of its mean."""
    freedom, expected = len(counts) - 1, counts.sum() / len(counts)
    return bool(((counts - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5)


def test_shapes_and_rows_go_shot_by_shot(numbered: Numbered) -> None:
    drawn = sampler(numbered([7] * 6), ways=4, shots=3, queries=2)
    support, query = drawn.gather(drawn.draw(5, seeded()))
    assert support.x.shape == (5, 12, 1, 3, 3) and query.x.shape == (5, 8, 1, 3, 3)
    assert support.x.dtype == torch.float32 and query.y["class"].dtype == torch.int64
    assert support.y["class"].equal(torch.arange(4).repeat(3).expand(5, 12))
    assert query.y["class"].equal(torch.arange(4).repeat(2).expand(5, 8))
    assert drawn.heads["class"].size == 4


def test_an_episode_repeats_no_class_and_no_image(numbered: Numbered) -> None:
    counts = [3, 9, 5, 20, 4, 7, 3, 3]
    collection = numbered(counts)
    drawn = sampler(collection, ways=5, shots=2, queries=1)
    support, query = drawn.gather(drawn.draw(500, seeded()))
    images = torch.cat([numbers(support.x), numbers(query.x)], dim=1)  # [T, N*(K+Q)]
    assert all(len(set(row)) == 15 for row in images.tolist())
    classes = collection.labels[images].view(500, 3, 5)
    assert (classes == classes[:, :1]).all()  # a way is one class, in support and query
    assert all(len(set(row)) == 5 for row in classes[:, 0].tolist())


def test_unequal_classes_never_draw_their_padding(numbered: Numbered) -> None:
    # Padding points at image 0, which is class 0's: were it drawn, another class's way would show a 0.
    collection = numbered([2, 2, 30, 2, 17])
    drawn = sampler(collection, ways=5, shots=1, queries=1)
    draw = drawn.draw(400, seeded())
    assert (draw["image"] < drawn.split.counts[draw["class"]][:, None]).all()
    images = numbers(drawn.gather(draw).support.x)
    assert collection.labels[images].equal(draw["class"])


def test_every_class_and_every_image_is_drawn_alike(numbered: Numbered) -> None:
    collection = numbered([8] * 12)
    drawn = sampler(collection, ways=3, shots=2, queries=2)
    episode = drawn.gather(drawn.draw(3000, seeded()))
    for part in episode:
        images = numbers(part.x).flatten()
        assert uniform(torch.bincount(images, minlength=96).float())
        assert uniform(torch.bincount(collection.labels[images], minlength=12).float())
    first = collection.labels[numbers(episode.support.x)[:, 0]]
    assert uniform(torch.bincount(first, minlength=12).float())  # no class prefers a label


def test_turned_classes_are_drawn_alike(numbered: Numbered) -> None:
    drawn = sampler(numbered([4] * 5), ways=3, shots=1, queries=1, turned=True)
    classes = drawn.draw(3000, seeded())["class"].flatten()
    assert uniform(torch.bincount(classes, minlength=20).float())


def test_the_same_seed_draws_the_same_episodes_whatever_else_happens(numbered: Numbered) -> None:
    drawn = sampler(numbered([7] * 6), ways=4, shots=3, queries=2)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = drawn.draw(5, seeded(3))
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(2)
    other = drawn.draw(5, seeded(3))
    assert all(one[key].equal(other[key]) for key in one)
    assert not drawn.draw(5, seeded(4))["image"].equal(one["image"])


def test_a_generator_goes_on_where_it_stopped(numbered: Numbered) -> None:
    drawn = sampler(numbered([7] * 6), ways=4, shots=3, queries=2)
    generator = seeded()
    drawn.draw(5, generator)
    state = generator.get_state()
    after = drawn.draw(5, generator)
    again = drawn.draw(5, torch.Generator().set_state(state))
    assert all(after[key].equal(again[key]) for key in after)


@pytest.mark.parametrize("channels", [1, 3])
def test_turned_pixels_are_rot90_of_the_image(channels: int) -> None:
    images = torch.randint(0, 256, (10, channels, 6, 6), generator=seeded()).byte()
    rows = torch.randint(0, 10, (4, 7), generator=seeded())
    turns = torch.arange(28).view(4, 7) % 4
    x = pixels(images, rows, turns)
    assert x.shape == (4, 7, channels, 6, 6)
    for t in range(4):
        for r in range(7):
            whole = torch.rot90(images[rows[t, r]], int(turns[t, r]), (-2, -1))
            assert x[t, r].equal(whole.float() / 255)


def test_oblong_images_are_taken_as_they_are() -> None:
    images = torch.randint(0, 256, (4, 1, 2, 5), generator=seeded()).byte()
    assert pixels(images, torch.tensor([2, 0]), torch.zeros(2).long()).equal(images[[2, 0]].float() / 255)


def test_gather_turns_the_classes_that_are_turned() -> None:
    images = torch.randint(0, 256, (4, 1, 5, 5), generator=seeded()).byte()
    collection = Collection.of(images, torch.tensor([0, 0, 1, 1]), ("a", "b"), ("all",) * 2)
    drawn = sampler(collection, ways=8, shots=1, queries=1, turned=True)
    draw = drawn.draw(3, seeded())
    support, query = drawn.gather(draw)
    for t in range(3):
        for way, c in enumerate(draw["class"][t].tolist()):
            pair = torch.stack([support.x[t, way], query.x[t, way]]) * 255
            turned = torch.rot90(images[2 * (c % 2) : 2 * (c % 2) + 2], c // 2, (-2, -1)).float()
            assert torch.allclose(pair, turned) or torch.allclose(pair, turned.flip(0))


def test_each_class_of_an_episode_is_turned_once_by_a_quarter_turn_of_its_own(numbered: Numbered) -> None:
    """All four turns come equally often, support and query show the same one, and no class is there twice."""
    images = torch.randint(0, 256, (8, 1, 5, 5), generator=seeded()).byte()
    collection = Collection.of(images, torch.arange(4).repeat_interleave(2), tuple("abcd"), ("all",) * 4)
    drawn = sampler(collection, ways=3, shots=1, queries=1, turned="episode")
    draw = drawn.draw(800, seeded())
    support, query = drawn.gather(draw)
    assert all(len(set(row)) == 3 for row in draw["class"].tolist())
    assert uniform(torch.bincount(draw["turn"].flatten(), minlength=4).float())
    assert len({tuple(row) for row in draw["turn"].tolist()}) == 64  # each class by itself
    for t in range(40):
        for way, (c, turn) in enumerate(zip(draw["class"][t].tolist(), draw["turn"][t].tolist(), strict=True)):
            pair = torch.stack([support.x[t, way], query.x[t, way]]) * 255
            turned = torch.rot90(images[2 * c : 2 * c + 2], turn, (-2, -1)).float()
            assert torch.allclose(pair, turned) or torch.allclose(pair, turned.flip(0))


def test_a_turn_for_each_episode_changes_neither_its_classes_nor_its_images(numbered: Numbered) -> None:
    upright, turned = (sampler(numbered([4] * 5), 3, 1, 1, kind).draw(9, seeded()) for kind in (False, "episode"))
    assert upright.keys() == {"class", "image"} and turned.keys() == {"class", "image", "turn"}
    assert all(upright[name].equal(turned[name]) for name in upright)


@pytest.mark.parametrize("by", ["group", "rows"])
def test_what_has_no_episodes_cannot_turn_the_classes_of_one(by: str, numbered: Numbered) -> None:
    data = split_classes("numbers", numbered([3] * 4), {"train": range(4)}, {"train": "episode"}, {})
    with pytest.raises(UserError) as error:
        data.tasks(by, 4)
    assert str(error.value) == (
        f"data.rotations=episode turns the classes of an episode, and algo.trains_on={by} draws none. "
        "Take true or false."
    )


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (False, False, "none"),
        (True, False, "90° as classes in training and validation; test upright"),
        (True, True, "90° as classes in training, validation and test"),
        (False, True, "90° as classes in test only"),
        ("episode", "episode", "a random quarter turn for each class of an episode in training, validation and test"),
        (
            True,
            "episode",
            "90° as classes in training and validation; a random quarter turn for each class of an episode in test",
        ),
    ],
)
def test_turns_are_told_in_words(train: Turning, test: Turning, words: str) -> None:
    assert in_words({"train": train, "val": train, "test": test}) == words


GROUPS = ["b", "a", "b", "c", "a", "b", "c", "b", "d", "c"]  # b has 4 classes, c 3, a 2, d 1


def test_the_ways_of_a_task_come_from_one_group_each_as_often_and_each_class_too(numbered: Numbered) -> None:
    drawn = sampler(numbered([3] * 10, GROUPS), ways=3, shots=1, queries=1, within="group")
    classes = drawn.draw(4000, seeded())["class"]
    assert all(len(set(row)) == 3 for row in classes.tolist())
    owners = [{GROUPS[c] for c in row} for row in classes.tolist()]
    assert all(len(owner) == 1 for owner in owners)
    assert uniform(torch.tensor([owners.count({group}) for group in "bc"]).float())  # a and d are too small
    seen = torch.bincount(classes.flatten(), minlength=10).float()
    assert uniform(seen[[0, 2, 5, 7]]) and uniform(seen[[3, 6, 9]]) and not seen[[1, 4, 8]].any()


def test_turned_copies_of_a_group_s_classes_are_of_the_group(numbered: Numbered) -> None:
    drawn = sampler(numbered([3] * 3, ["a", "b", "b"]), ways=4, shots=1, queries=1, turned=True, within="group")
    classes = drawn.draw(500, seeded())["class"]
    members = {frozenset(row) for row in (classes % 3).clamp(max=1).tolist()}  # class c + 3 is class c, turned
    assert members == {frozenset({0}), frozenset({1})}


def test_within_a_group_is_another_set_of_episodes_and_says_so(numbered: Numbered) -> None:
    collection = numbered([3] * 10, GROUPS)
    plain, within = (sampler(collection, 2, 1, 1, within=word) for word in (None, "group"))
    assert plain.fingerprint != within.fingerprint
    everything: dict[str, range] = {"train": range(10)}
    said = [split_classes("x", collection, everything, {"train": False}, {}, w).protocol for w in (None, "group")]
    assert said == [{}, {"within": "group"}]


def test_more_ways_than_the_largest_group_has_are_refused(numbered: Numbered) -> None:
    with pytest.raises(UserError) as error:
        sampler(numbered([3] * 10, GROUPS), ways=5, shots=1, queries=1, within="group")
    assert str(error.value) == (
        "data.ways=5 with data.within=group is more than the 4 classes of b, "
        "the largest group of numbers's train split. Lower data.ways."
    )


def test_lake_s_challenge_is_twenty_characters_of_one_alphabet(omniglot: Callable[..., ImageData]) -> None:
    drawn = omniglot(split="lake", within="group").episodes("test", 20, 1, 1)
    alphabets = [{drawn.split.groups[c] for c in row} for row in drawn.draw(200, seeded())["class"].tolist()]
    assert all(len(alphabet) == 1 for alphabet in alphabets)
    assert len(set.union(*alphabets)) == sum(drawn.split.groups.count(g) >= 20 for g in set(drawn.split.groups)) > 10


def test_real_omniglot_gives_sound_episodes(omniglot: Callable[..., ImageData]) -> None:
    data = omniglot()
    drawn = data.episodes("train", 20, 5, 15)
    draw = drawn.draw(4, seeded())
    assert all(len(set(row)) == 20 for row in draw["class"].tolist())
    episode = drawn.gather(draw)
    assert episode.support.x.shape == (4, 100, 1, 28, 28) and episode.query.x.shape == (4, 300, 1, 28, 28)
    assert 0.05 < float(episode.support.x.mean()) < 0.15
