from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.hostile import bare_png
from metarun.data.draw.source import ImageData, classes_by_name, split_classes
from metarun.data.images import decode as decoding
from metarun.data.images.collection import Collection
from metarun.data.images.decode import decode as pieces
from metarun.data.images.mapped import PIECE
from metarun.errors import UserError

Numbered = Callable[..., Collection]


def data(collection: Collection, **turned: bool) -> ImageData:
    thirds = len(collection.names) // 3
    classes = {
        "train": range(thirds),
        "val": range(thirds, 2 * thirds),
        "test": range(2 * thirds, len(collection.names)),
    }
    return split_classes("numbers", collection, classes, {"train": False, "val": False, "test": False} | turned, {})


def png(image: Image.Image, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def decode(*args: Any, **keys: Any) -> Tensor:
    return torch.cat([*pieces(*args, **keys)])


def test_the_fingerprint_is_of_pixels_labels_and_names(numbered: Numbered) -> None:
    one = numbered([3, 3])
    assert numbered([3, 3]).fingerprint == one.fingerprint
    images = one.images.clone()
    images[0, 0, 0, 0] = 9
    others = [
        Collection.of(images, one.labels, one.names, one.groups),
        Collection.of(one.images, one.labels.flip(0), one.names, one.groups),
        Collection.of(one.images, one.labels, ("class0", "b"), one.groups),
        Collection.of(one.images.flatten(2)[..., None], one.labels, one.names, one.groups),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_splits_hold_exactly_their_classes_images(numbered: Numbered) -> None:
    collection = numbered([4, 2, 5, 3, 1, 6])
    shuffle = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    mixed = replace(collection, images=collection.images[shuffle], labels=collection.labels[shuffle])
    splits = data(mixed).splits
    assert [splits[name].counts.tolist() for name in ("train", "val", "test")] == [[4, 2], [5, 3], [1, 6]]
    for split in splits.values():
        for row, count, name in zip(split.rows, split.counts, split.names):
            own = row[:count]
            assert {mixed.names[c] for c in mixed.labels[own].tolist()} == {name}
            assert len(set(own.tolist())) == count
    assert sum(int(split.counts.sum()) for split in splits.values()) == 21


def test_a_turned_class_is_four_classes_of_the_same_images(numbered: Numbered) -> None:
    split = data(numbered([2] * 6, ["g", "h"] * 3), train=True).splits["train"]
    assert split.turns.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert split.names == ("class0", "class1") * 4 and split.groups == ("g", "h") * 4
    assert all(split.rows[k * 2 : k * 2 + 2].equal(split.rows[:2]) for k in range(4))


def test_disjoint_splits_share_no_image_turned_or_not(numbered: Numbered) -> None:
    splits = data(numbered([3] * 9), train=True, val=True, test=True).splits
    images = [set(split.rows.flatten().tolist()) for split in splits.values()]
    assert not images[0] & images[1] and not images[0] & images[2] and not images[1] & images[2]


def test_too_few_images_name_the_keys_and_the_remedy(numbered: Numbered) -> None:
    with pytest.raises(UserError) as error:
        data(numbered([20] * 6)).episodes("train", 2, 15, 10)
    assert str(error.value) == (
        "data.shots=15 with data.queries=10 needs 25 images per class; numbers has 20. Lower one of them."
    )


def test_too_few_images_of_one_class_name_it(numbered: Numbered) -> None:
    with pytest.raises(UserError, match=r"numbers's class class4 has 3\. Lower one of them"):
        data(numbered([9, 9, 9, 9, 3, 9])).episodes("test", 2, 3, 1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ((3, 1, 1), "data.ways=3 is more than the 2 classes of numbers's train split"),
        ((0, 1, 1), "data.ways=0 must be at least 2"),
        ((2, 0, 1), "data.shots=0 must be at least 1"),
        ((2, 1, -1), "data.queries=-1 must be at least 1"),
    ],
)
def test_impossible_episodes_are_refused(numbered: Numbered, keys: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        data(numbered([4] * 6)).episodes("train", *keys)


def test_every_image_may_be_used(numbered: Numbered) -> None:
    sampler = data(numbered([4] * 6)).episodes("train", 2, 3, 1)
    episode = sampler.gather(sampler.draw(1, torch.Generator().manual_seed(0)))
    drawn = torch.cat([episode.support.x, episode.query.x], dim=1)[0, :, 0, 0, 0] * 255
    assert sorted(drawn.round().int().tolist()) == list(range(8))


def test_episodes_of_other_splits_have_other_fingerprints(numbered: Numbered) -> None:
    collection = numbered([4] * 6)
    one = data(collection).episodes("test", 2, 1, 1).fingerprint
    assert data(collection).episodes("test", 2, 1, 1).fingerprint == one
    other = split_classes("numbers", collection, {"test": [5, 4]}, {"test": False}, {})
    turned = data(collection, test=True)
    assert len({one, *(d.episodes("test", 2, 1, 1).fingerprint for d in (other, turned))}) == 3


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([("train", "a"), ("val", "z")], "lists puts the class z into val, but there is no such class"),
        ([("train", "a"), ("test", "a")], "lists names the class a twice"),
    ],
)
def test_lists_of_classes_are_checked(listed: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        classes_by_name(listed, ("a", "b"), "lists")


def test_decode_takes_the_middle_square_of_any_size() -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200
    small = np.full((3, 3), 200, np.uint8)
    files = [(str(image.shape), png(Image.fromarray(image))) for image in (wide, wide.T, small)]
    images = decode(files, 5, colour=False)
    assert images.shape == (3, 1, 5, 5)
    assert (images.int() - 200).abs().max() < 15  # the filter sees a little of what lies beside the square


def test_decode_has_few_images_in_memory_at_a_time() -> None:
    grey = [("", png(Image.new("L", (2, 2), m % 256))) for m in range(2 * PIECE + 3)]
    parts = [*pieces(grey, 2, colour=False)]
    assert [len(part) for part in parts] == [PIECE, PIECE, 3]
    assert torch.cat(parts)[:, 0, 0, 0].equal(torch.arange(2 * PIECE + 3).byte())


def test_decode_keeps_colours_and_their_order() -> None:
    red = png(Image.new("RGB", (4, 4), (200, 10, 30)))
    assert decode([("red", red)], 2, colour=True)[0, :, 0, 0].tolist() == [200, 10, 30]
    assert decode([("red", red)], 2, colour=False).shape == (1, 1, 2, 2)
    grey = png(Image.new("L", (4, 4), 90))
    assert decode([("grey", grey)], 2, colour=True)[0, :, 0, 0].tolist() == [90, 90, 90]


def test_decode_understands_16_bits_transparency_palettes_and_orientation(tmp_path: Path) -> None:
    deep = png(Image.fromarray(np.full((4, 4), 100 * 256, np.uint16)))
    clear = png(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))
    palette = png(Image.new("RGB", (4, 4), (0, 255, 0)).quantize(4))
    assert [int(image[0, 0, 0]) for image in decode([("", deep), ("", clear)], 2, colour=False)] == [100, 255]
    assert decode([("", palette)], 2, colour=True)[0, :, 0, 0].tolist() == [0, 255, 0]
    half = Image.fromarray(np.repeat(np.array([[0, 0, 255, 255]], np.uint8), 4, axis=0))
    exif = half.getexif()
    exif[0x0112] = 6  # a camera held upright: turned by 90° clockwise when shown
    half.save(tmp_path / "photo.png", exif=exif)
    shown = decode([("photo", tmp_path / "photo.png")], 4, colour=False)[0, 0]
    assert shown.equal(torch.from_numpy(np.rot90(np.array(half), -1).copy()))


def test_a_large_jpeg_decoded_small_looks_as_if_decoded_large(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 1600).astype(np.uint8)
    Image.fromarray(np.broadcast_to(ramp, (1200, 1600)).copy()).save(tmp_path / "large.jpg", quality=95)
    Image.fromarray(np.broadcast_to(ramp, (1200, 1600)).copy()).save(tmp_path / "large.png")
    jpeg, exact = decode([(n, tmp_path / n) for n in ("large.jpg", "large.png")], 20, colour=False).int()
    assert (jpeg - exact).abs().max() <= 2


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", png(Image.new("L", (40, 40), 3))[:50], png(Image.new("L", (40, 40), 3))[:-30]],
    ids=["empty", "text", "cut", "nearly whole"],
)
def test_a_file_that_is_no_image_is_named_in_one_line(content: bytes) -> None:
    with pytest.raises(UserError, match=r"cats/tom\.png cannot be read as an image") as error:
        decode([("cats/tom.png", content)], 4, colour=False)
    assert "\n" not in str(error.value)


def test_all_that_cannot_be_read_is_told_after_the_last_piece() -> None:
    files = [(f"{m}.png", png(Image.new("L", (2, 2))) if m % 2 else b"") for m in range(PIECE + 9)]
    with pytest.raises(
        UserError, match=rf"^133 of {PIECE + 9} images cannot be read: 0\.png \(unkn.*, 18\.png .* and 123 more\."
    ):
        decode(files, 2, colour=False)


def jpeg(side: int, **options: object) -> bytes:
    buffer = BytesIO()
    Image.new("L", (side, side), 90).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_an_image_of_too_many_pixels_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    for side in (10_001, 40_000):
        with pytest.raises(UserError, match=r"^bomb cannot be read as an image \(more than \d+ million pixels\)"):
            decode([("bomb", bare_png(side, side, 0))], 4, colour=False)
    monkeypatch.setattr(decoding, "PIXELS", 1000)
    assert decode([("", jpeg(60))], 5, colour=False).shape == (1, 1, 5, 5)  # decoded at half its size
    for content in (jpeg(60, progressive=True), png(Image.new("L", (60, 60)))):  # decoded whole
        with pytest.raises(UserError, match="more than"):
            decode([("", content)], 5, colour=False)


def test_large_images_are_decoded_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most = [], []

    def opaque(image: Image.Image) -> Image.Image:
        at_once.append(image)
        most.append(len(at_once))
        time.sleep(0.01)
        at_once.pop()
        return image

    monkeypatch.setattr(decoding, "_opaque", opaque)
    monkeypatch.setattr(decoding, "LARGE", 8)
    decode([("", png(Image.new("L", (3, 3))))] * 8, 2, colour=False)
    assert max(most) == 1


def test_what_pil_warns_of_is_no_noise(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert decode([("", png(Image.new("L", (8, 8), 7)))], 2, colour=False).eq(7).all()
    assert not recwarn.list


def test_of_an_animation_or_a_stack_the_first_image_counts() -> None:
    frames = [Image.new("L", (9, 9), shade) for shade in (200, 0, 90)]
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        buffer = BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        assert (decode([(kind, buffer.getvalue())], 3, colour=False).int() - 200).abs().max() <= 2


def test_ink_that_is_subtracted_is_understood_and_floats_are_refused() -> None:
    contents = []
    for mode, value in (("CMYK", (0, 255, 255, 0)), ("F", 0.5)):
        buffer = BytesIO()
        Image.new(mode, (4, 4), value).save(buffer, "TIFF")
        contents.append((mode, buffer.getvalue()))
    assert decode(contents[:1], 2, colour=True)[0, :, 0, 0].tolist() == [255, 0, 0]
    with pytest.raises(UserError, match=r"^F cannot be read as an image \(pixels are floating-point numbers"):
        decode(contents, 2, colour=True)


def test_no_other_program_is_asked_to_draw() -> None:
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(UserError, match="EPS is no format of pixels"):
        decode([("a.png", program)], 2, colour=False)
    assert ".eps" not in decoding.suffixes() and {".png", ".jpg", ".webp", ".mpo"} <= decoding.suffixes()


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.write(png(Image.new("L", (4, 4))))
        file.truncate(2**31)
    with pytest.raises(UserError, match=r"a\.png cannot be read as an image \(2\.1 GB\)"):
        decode([("a.png", tmp_path / "a.png")], 2, colour=False)


def test_every_image_that_is_decoded_and_checked_is_told_of(told: list[tuple[str, int, int]]) -> None:
    files = [(str(n), png(Image.new("L", (4, 4), n))) for n in range(PIECE + 3)]
    images = torch.cat([*pieces(files, 4, False)])
    Collection.of(images, torch.zeros(len(images), dtype=torch.int64), ("all",), ("all",))
    assert told == [("decoding images", PIECE + 3, PIECE + 3), ("checking images", PIECE + 3, PIECE + 3)]
