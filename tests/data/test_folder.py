from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.data import folder as module
from metarun.data.draw.source import ImageData
from metarun.data.images import cache, classes
from metarun.errors import UserError

Load = Callable[..., ImageData]
SPLITS = ("train", "val", "test")


@pytest.fixture
def folder(configured: Callable[..., Any]) -> Load:
    def load(root: Path, **keys: Any) -> ImageData:
        keys = {"size": 6, "ways": 2, **keys}
        return configured("folder", root=str(root), **keys).load(torch.device("cpu"))

    return load


def put(folder: Path, count: int = 3, value: int = 100, ending: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.full((8 + number, 12, 3), value, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.{ending}")


def animals(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        put(root / name, value=10 * number)
    return root


def sizes(data: ImageData) -> list[int]:
    return [len(data.splits[split].counts) for split in SPLITS]


def names(data: ImageData, split: str) -> set[str]:
    return set(data.splits[split].names)


def refused(folder: Load, root: Path, **keys: Any) -> str:
    with pytest.raises(UserError) as error:
        folder(root, **keys)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_real_photos_are_dealt_by_class(folder: Load, photos: Path) -> None:
    data = folder(photos, size=32)
    assert data.shape == (3, 32, 32) and data.images.shape[0] == 2000 and sizes(data) == [6, 2, 2]
    assert len(names(data, "train") | names(data, "val") | names(data, "test")) == 10
    assert data.protocol == {"split": "random (seed 0): 6/2/2 classes", "rotations": "none"}
    sampler = data.episodes("test", 2, 5, 15)
    episode = sampler.gather(sampler.draw(3, torch.Generator().manual_seed(0)))
    assert episode.query.x.shape == (3, 30, 3, 32, 32)
    assert folder(photos, size=16, colour=False).shape == (1, 16, 16)


def test_images_and_classes_belong_together(folder: Load, tmp_path: Path) -> None:
    for number in range(9):
        put(tmp_path / f"c{number}", count=number + 1, value=20 * number, ending=["png", "bmp", "webp"][number % 3])
    data = folder(tmp_path)
    for split in data.splits.values():
        for name, count, row in zip(split.names, split.counts, split.rows):
            number = int(name[1:])
            assert count == number + 1
            assert ((data.images[row[:count]].int() - 20 * number).abs() <= 2).all()  # webp loses a little


def test_the_seed_deals_and_the_same_seed_deals_alike(folder: Load, tmp_path: Path) -> None:
    root = animals(tmp_path, *(f"c{n}" for n in range(20)))
    deals = [folder(root, split_seed=seed) for seed in (0, 0, 1)]
    assert names(deals[0], "test") == names(deals[1], "test") != names(deals[2], "test")
    assert not names(deals[0], "train") & names(deals[0], "test")


@pytest.mark.parametrize(
    ("split", "ways", "expected"),
    [("auto", 2, [13, 3, 4]), ("auto", 5, [10, 5, 5]), ([0.5, 0.2, 0.3], 2, [10, 4, 6])],
)
def test_shares_of_the_classes(folder: Load, tmp_path: Path, split: Any, ways: int, expected: list[int]) -> None:
    root = animals(tmp_path, *(f"c{n}" for n in range(20)))
    assert sizes(folder(root, split=split, ways=ways)) == expected


@pytest.mark.parametrize("split", ["half", [0.5, 0.5], [0.5, 0.5, 0.5], [1.0, 0.0, 0.0]])
def test_wrong_shares_are_refused(folder: Load, tmp_path: Path, split: Any) -> None:
    root = animals(tmp_path, "a", "b", "c", "d", "e", "f")
    assert "is neither auto nor three shares" in refused(folder, root, split=split)


def test_too_few_classes_say_how_many_are_needed(folder: Load, tmp_path: Path) -> None:
    root = animals(tmp_path, "a", "b", "c", "d", "e")
    error = refused(folder, root)
    assert error.startswith("data.ways=2 needs 6 classes") and "has 5 to deal. Lower data.ways" in error


def test_split_folders_are_kept(folder: Load, tmp_path: Path) -> None:
    animals(tmp_path / "train", "a", "b", "c")
    animals(tmp_path / "val", "d", "e")
    animals(tmp_path / "test", "f", "g")
    data = folder(tmp_path)
    assert [names(data, split) for split in SPLITS] == [{"a", "b", "c"}, {"d", "e"}, {"f", "g"}]
    assert set(data.splits["train"].groups) == {"all"}
    assert "train/ val/ test/: 3/2/2 classes" in data.protocol["split"]


def test_without_val_some_of_train_validates(folder: Load, tmp_path: Path) -> None:
    animals(tmp_path / "train", *"abcdefgh")
    animals(tmp_path / "test", "y", "z")
    data = folder(tmp_path)
    assert sizes(data) == [6, 2, 2] and names(data, "train") | names(data, "val") == set("abcdefgh")
    assert "val out of train (seed 0): 6/2/2" in data.protocol["split"]


def test_a_class_in_two_splits_is_refused(folder: Load, tmp_path: Path) -> None:
    animals(tmp_path / "train", "cat", "dog")
    animals(tmp_path / "test", "cat", "dog")
    assert "has the class cat in test/ and in another split" in refused(folder, tmp_path)


def test_train_without_test_is_refused(folder: Load, tmp_path: Path) -> None:
    animals(tmp_path / "train", "cat", "dog")
    animals(tmp_path / "val", "cow", "hen")
    assert "has train/ but no test/. Add it." in refused(folder, tmp_path)


def test_where_test_alone_is_asked_for_the_rest_need_not_be_there(folder: Load, tmp_path: Path) -> None:
    animals(tmp_path / "both" / "train", "a", "b")
    for root in (tmp_path / "both", tmp_path / "alone"):
        animals(root / "test", "y", "z")
        data = folder(root, splits=["test"], ways=9)
        assert set(data.splits) == {"test"} and names(data, "test") == {"y", "z"}
        assert len(data.images) == 6  # the others are not even decoded
        assert data.protocol["split"] == f"{root.name}: test/: 2 classes"
    with pytest.raises(UserError, match=r"data\.splits=\[test\] leaves out train, which is needed. Add it"):
        data.episodes("train", 2, 1, 1)
    animals(tmp_path / "none" / "train", "a", "b")
    assert "has train/ but no test/" in refused(folder, tmp_path / "none", splits=["test"])


def test_class_folders_are_tested_on_alone_without_being_dealt(folder: Load, tmp_path: Path) -> None:
    data = folder(animals(tmp_path, "a", "b", "c"), splits=["test"], ways=3)
    assert names(data, "test") == {"a", "b", "c"} and data.protocol["split"] == "all: 3 classes"


def test_a_class_may_be_called_train(folder: Load, tmp_path: Path) -> None:
    data = folder(animals(tmp_path, "airplane", "bus", "car", "ship", "train", "truck"))
    assert sizes(data) == [2, 2, 2]


def test_lists_name_the_classes_of_each_split(folder: Load, tmp_path: Path) -> None:
    animals(tmp_path, *"abcdefg")
    for split, lines in {"train": "# ours\na\nb/\n\n", "val": "c\nd", "test": "e\nf\n"}.items():
        (tmp_path / f"{split}.txt").write_text(lines)
    data = folder(tmp_path)
    assert [names(data, split) for split in SPLITS] == [{"a", "b"}, {"c", "d"}, {"e", "f"}]
    assert len(data.images) == 18  # g is not listed: it is not even decoded
    (tmp_path / "test.txt").write_text("e\nzebra\n")
    assert "puts the class zebra into test, but there is no such class" in refused(folder, tmp_path)
    (tmp_path / "test.txt").write_text("e\na\n")
    assert "names the class a twice" in refused(folder, tmp_path)
    (tmp_path / "test.txt").write_text("# none\n")
    assert "test.txt names no class" in refused(folder, tmp_path)


def test_nested_class_folders_have_groups(folder: Load, tmp_path: Path) -> None:
    animals(tmp_path, "Greek/alpha", "Greek/beta", "Latin/a", "Latin/b", "Runes/f", "Runes/u")
    data = folder(tmp_path)
    pairs = {pair for split in data.splits.values() for pair in zip(split.names, split.groups)}
    assert ("Greek/alpha", "Greek") in pairs and ("Runes/u", "Runes") in pairs and len(pairs) == 6


def test_hidden_files_are_ignored(folder: Load, tmp_path: Path) -> None:
    root = animals(tmp_path, *"abcdef")
    before = folder(root).fingerprint
    for junk in (".DS_Store", "a/.DS_Store", "b/Thumbs.db", "c/desktop.ini", "d/._0.png", "README.md"):
        (root / junk).write_text("no image")
    (root / ".git").mkdir()
    (root / ".git" / "HEAD").write_text("no image")
    assert folder(root).fingerprint == before


def test_a_file_that_is_no_image_though_its_name_says_so_is_named(folder: Load, tmp_path: Path) -> None:
    root = animals(tmp_path, *"abcdef")
    (root / "c" / "cat.PNG").write_text("a cat")
    error = refused(folder, root)
    assert f"{root / 'c' / 'cat.PNG'} cannot be read as an image (unknown format). Replace or remove it." in error


def test_all_images_that_cannot_be_read_are_told_at_once(folder: Load, tmp_path: Path) -> None:
    root = animals(tmp_path, *"abcdef")
    wrong = [root / name / f"broken{number:02}.jpg" for name in "af" for number in range(8)]
    for path in wrong:
        path.write_bytes(b"")
    error = refused(folder, root)
    assert error.startswith("16 of 34 images cannot be read: ") and error.endswith(
        " and 6 more. Replace or remove them."
    )
    assert all(str(path) in error for path in wrong[:10]) and str(wrong[10]) not in error


def test_files_that_are_no_images_by_their_suffix_are_counted_and_skipped(
    folder: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = animals(tmp_path, *"abcdef")
    before = folder(root).fingerprint
    assert not any("suffix" in told for told in caplog.messages)  # a slow machine tells that it decodes
    caplog.clear()
    for name in ("a/notes.txt", "a/more.TXT", "b/labels", "c/film.mpg", "c/drawing.eps"):
        (root / name).write_text("no image")
    assert folder(root).fingerprint == before
    assert caplog.messages == [
        f"data.root={root}: Files skipped, whose suffix is no image's: 5 (.txt: 2, none: 1, .eps: 1, .mpg: 1)."
    ]


def test_a_suffix_may_be_written_in_capitals_and_of_another_format(folder: Load, tmp_path: Path) -> None:
    root = animals(tmp_path, *"abcdef")
    before = folder(root).fingerprint
    for number, ending in enumerate(("PNG", "JPG", "Tiff")):
        (root / "c" / f"{number}.png").rename(root / "c" / f"{number}.{ending}")
    assert folder(root).fingerprint == before


def test_class_folders_without_images_are_told_at_once(folder: Load, tmp_path: Path) -> None:
    root = animals(tmp_path, *"abcdef")
    for name in ("g", "h"):
        (root / name).mkdir()
        (root / name / "photo.heic").write_text("what phones write")
    assert refused(folder, root) == (
        f"The class folder {root / 'g'} has no images, nor have {root / 'h'}. Add some or remove it. "
        "Files skipped, whose suffix is no image's: 2 (.heic: 2)."
    )


def test_a_file_beside_class_folders_makes_no_class(folder: Load, tmp_path: Path) -> None:
    root = animals(tmp_path, *(f"Greek/{name}" for name in "abcdef"))
    (root / "Greek" / "readme.txt").write_text("letters")
    assert sum(sizes(folder(root))) == 6


@pytest.mark.parametrize("target", ["", "a", ".."])
def test_a_link_to_a_parent_is_refused(folder: Load, tmp_path: Path, target: str) -> None:
    root = animals(tmp_path / "photos", *"abcdef")
    (root / "a" / "loop").symlink_to(root / target)
    assert refused(folder, root) == (
        f"{root / 'a' / 'loop'} and {(root / target).resolve()} are the same folder. Remove the link."
    )


def test_a_class_that_is_another_one_by_a_link_is_refused_across_splits_too(folder: Load, tmp_path: Path) -> None:
    animals(tmp_path / "train", *"abcd")
    animals(tmp_path / "test", "e", "f")
    (tmp_path / "test" / "g").symlink_to(tmp_path / "train" / "b")
    assert "test/g and " in refused(folder, tmp_path) and "are the same folder" in refused(folder, tmp_path)


def test_links_to_classes_elsewhere_are_followed(folder: Load, tmp_path: Path) -> None:
    animals(tmp_path / "store", *"abcdef")
    (tmp_path / "photos").mkdir()
    for name in "abcdef":
        (tmp_path / "photos" / name).symlink_to(tmp_path / "store" / name)
    assert folder(tmp_path / "photos").fingerprint == folder(tmp_path / "store").fingerprint


def test_only_regular_files_are_opened(folder: Load, tmp_path: Path) -> None:
    root = animals(tmp_path, *"abcdef")
    os.mkfifo(root / "a" / "9.png")
    (root / "b" / "9.png").symlink_to("/dev/zero")
    (root / "c" / "9.png").symlink_to("nowhere")
    (root / "d" / "9.png").symlink_to("9.png")
    reasons = ["no regular file", "no regular file", "No such file or directory", "Too many levels of symbolic links"]
    told = ", ".join(f"{root / name / '9.png'} ({reason})" for name, reason in zip("abcd", reasons))
    assert refused(folder, root) == f"4 of 22 images cannot be read: {told}. Replace or remove them."


def test_an_unreadable_file_is_named(folder: Load, tmp_path: Path) -> None:
    root = animals(tmp_path, *"abcdef")
    (root / "c" / "1.png").chmod(0)
    if os.access(root / "c" / "1.png", os.R_OK):
        pytest.skip("this user (root?) reads every file")
    assert "c/1.png cannot be read as an image (Permission denied)" in refused(folder, root)


def test_a_folder_that_vanishes_while_it_is_read_is_named(
    folder: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = animals(tmp_path / "photos", *"abcdefg")
    scan = os.scandir

    def scandir(place: Path) -> Any:
        found = scan(place)
        if place == root / "a":
            (root / "c").rename(tmp_path / "gone")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(classes.os, "scandir", scandir)
        assert refused(folder, root) == f"{root / 'c'} cannot be read (No such file or directory). Mend or remove it."

    def cached(name: str, key: Any, make: Callable[[], Any]) -> Any:
        (root / "d").rename(tmp_path / "gone too")
        return cache.cached(name, key, make)

    monkeypatch.setattr(module, "cached", cached)
    assert refused(folder, root).startswith(f"3 of 18 images cannot be read: {root / 'd' / '0.png'} (No such")


def test_names_that_are_no_utf8_are_shown_with_escapes(folder: Load, tmp_path: Path) -> None:
    root = animals(tmp_path, *"abcde", os.fsdecode(b"caf\xe9"))
    data = folder(root)
    assert r"caf\xe9" in names(data, "train") | names(data, "val") | names(data, "test")
    assert folder(root).fingerprint == data.fingerprint
    (root / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xff\n.png")).touch()
    assert rf"{root}/caf\xe9/\xff\n.png cannot be read" in refused(folder, root)


def test_two_classes_that_are_shown_alike_are_refused(folder: Load, tmp_path: Path) -> None:
    root = animals(tmp_path, *"abcde", os.fsdecode(b"\xe9"), r"\xe9")
    assert refused(folder, root) == rf"{root} has two class folders that are shown as \xe9. Rename one."


def test_lists_name_classes_as_they_are_shown(folder: Load, tmp_path: Path) -> None:
    root = animals(tmp_path, *"abcde", os.fsdecode(b"caf\xe9"))
    (root / "train.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")  # as Windows writes it
    (root / "val.txt").write_text("c\nd")
    (root / "test.txt").write_text("e\ncaf\\xe9")
    data = folder(root)
    assert names(data, "train") == {"a", "b"} and names(data, "test") == {"e", r"caf\xe9"}


def test_classes_whose_names_differ_in_case_are_two(folder: Load, tmp_path: Path) -> None:
    if (tmp_path / "probe").mkdir() or (tmp_path / "PROBE").exists():
        pytest.skip("this file system does not tell them apart")
    (tmp_path / "probe").rmdir()
    data = folder(animals(tmp_path, *"abcABC"))
    assert len(names(data, "train") | names(data, "val") | names(data, "test")) == 6


def test_a_root_that_is_no_folder_or_cannot_be_is_refused(folder: Load, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file is no folder. Give" in refused(folder, tmp_path / "file")
    for root in ("x" * 5000, "~nobody-here/photos", "a\0b"):
        assert "does not exist. Give" in refused(folder, Path(root))
    assert refused(folder, Path("caf\udce9")) == r"data.root=caf\xe9 is no UTF-8. Rename it, or give a link to it."


@pytest.mark.parametrize("junk", [False, True])
def test_an_empty_class_folder_is_named(folder: Load, tmp_path: Path, junk: bool) -> None:
    root = animals(tmp_path, *"abcdef")
    (root / "hollow").mkdir()
    if junk:
        (root / "hollow" / ".DS_Store").touch()
    assert f"The class folder {root / 'hollow'} has no images" in refused(folder, root)


def test_an_unreadable_class_folder_is_named(folder: Load, tmp_path: Path) -> None:
    root = animals(tmp_path, *"abcdef")
    (root / "c").chmod(0)
    if os.access(root / "c", os.R_OK):
        pytest.skip("this user (root?) reads every folder")
    try:
        assert f"{root / 'c'} cannot be read (Permission denied)" in refused(folder, root)
    finally:
        (root / "c").chmod(0o700)


def test_a_missing_or_empty_root_says_what_to_give(folder: Load, tmp_path: Path) -> None:
    error = refused(folder, tmp_path / "absent")
    assert error.startswith(f"data.root={tmp_path / 'absent'} does not exist. Give a folder with")
    assert f"data.root={tmp_path} has no class folders" in refused(folder, tmp_path)
    put(tmp_path)  # images, but no class folders
    assert f"data.root={tmp_path} has no class folders" in refused(folder, tmp_path)


def test_too_few_images_name_the_class(folder: Load, tmp_path: Path) -> None:
    for number, name in enumerate("abcdef"):
        put(tmp_path / name, count=8 - number)
    data = folder(tmp_path, ways=1)
    split = data.splits["train"]
    fewest = split.names[int(split.counts.argmin())]
    with pytest.raises(UserError, match=f"needs 9 images per class; folder's class {fewest} has "):
        data.episodes("train", 2, 5, 4)


def test_images_are_opened_once_until_they_change(
    folder: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = animals(tmp_path / "photos", *"abcdef")
    before = folder(root)
    with monkeypatch.context() as closed:
        closed.setattr(Image, "open", lambda *_: pytest.fail("an image was opened"))
        assert folder(root).fingerprint == before.fingerprint
    put(root / "a", value=99)
    assert folder(root).fingerprint != before.fingerprint
