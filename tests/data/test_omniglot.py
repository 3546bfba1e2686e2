from __future__ import annotations

import http.server
import os
import sys
import threading
import tracemalloc
import types
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import md5
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from metarun.data import omniglot as module
from metarun.data.draw.source import ImageData
from metarun.errors import UserError

Load = Callable[..., ImageData]
Configured = Callable[..., Any]
CPU = torch.device("cpu")
SMALL = {"images_background": 14, "images_evaluation": 4}  # two characters an alphabet


def drawing(alphabet: int, character: int, number: int) -> bytes:
    """Paper is white; a black square tells the character, a dot the drawing."""
    image = Image.new("1", (105, 105), 1)
    pen = ImageDraw.Draw(image)
    pen.rectangle((5 + 5 * alphabet, 5 + 40 * character, 15 + 5 * alphabet, 35 + 40 * character), fill=0)
    pen.point((2 + number, 2), fill=0)
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def small_files(part: str) -> dict[str, bytes]:
    first = "A" if part == "images_background" else "S"
    return {
        f"{part}/{chr(ord(first) + c // 2)}/character{c % 2 + 1:02}/{number:02}.png": drawing(c // 2, c % 2, number)
        for c in range(SMALL[part])
        for number in range(20)
    }


def pack(root: Path, part: str, files: dict[str, bytes]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root / f"{part}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def pack_all(root: Path) -> None:
    for part in SMALL:
        pack(root, part, small_files(part))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, configured: Configured) -> Load:
    """An Omniglot of 14 + 4 characters, split like the authors'."""
    monkeypatch.setattr(module, "PARTS", SMALL)
    return lambda root, **keys: configured("omniglot", root=str(root), **{"split": "lake", **keys}).load(CPU)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)


def characters(data: ImageData, split: str) -> set[str]:
    return set(data.splits[split].names)


def test_random_splits_all_characters_by_seed(omniglot: Load) -> None:
    data = omniglot()
    sizes = {name: len(split.counts) for name, split in data.splits.items()}
    assert sizes == {"train": 4400, "val": 400, "test": 423}
    assert data.images.shape == (32460, 1, 28, 28) and data.images.dtype == torch.uint8
    assert all((split.counts == 20).all() for split in data.splits.values())
    assert data.protocol == {
        "split": "random (seed 0): 1100/100/423 characters",
        "rotations": "90° as classes in training and validation; test upright",
    }
    again, other = omniglot(), omniglot(split_seed=1)
    assert again.splits["test"].rows.equal(data.splits["test"].rows)
    assert characters(other, "test") != characters(data, "test")
    one, two = (d.episodes("test", 5, 1, 1).fingerprint for d in (data, other))
    assert data.fingerprint == other.fingerprint and one != two


@pytest.mark.parametrize("split", ["random", "lake"])
def test_splits_are_disjoint_including_rotations(omniglot: Load, split: str) -> None:
    data = omniglot(split=split, rotations=True, test_rotations=True)
    names = [characters(data, part) for part in ("train", "val", "test")]
    assert sum(len(part) for part in names) == len(set.union(*names)) == 1623
    images = [set(data.splits[part].rows.flatten().tolist()) for part in ("train", "val", "test")]
    assert sum(len(part) for part in images) == len(set.union(*images)) == 32460
    for part in data.splits.values():
        turns = {(name, int(turn)) for name, turn in zip(part.names, part.turns)}
        assert len(turns) == len(part.names) == 4 * len(set(part.names))


def test_lake_holds_out_whole_alphabets(omniglot: Load) -> None:
    data = omniglot(split="lake", rotations=False)
    alphabets = {name: set(split.groups) for name, split in data.splits.items()}
    assert {name: len(part) for name, part in alphabets.items()} == {"train": 25, "val": 5, "test": 20}
    assert len(set.union(*alphabets.values())) == 50
    assert len(data.splits["test"].counts) == 659
    assert len(data.splits["train"].counts) + len(data.splits["val"].counts) == 964
    assert "Greek/character01" in characters(data, "train") | characters(data, "val")
    assert "Angelic/character01" in characters(data, "test")


@pytest.mark.parametrize("flags", [(False, False), (True, False), (True, True), (False, True)])
def test_rotations_follow_their_flags(omniglot: Load, flags: tuple[bool, bool]) -> None:
    data = omniglot(rotations=flags[0], test_rotations=flags[1])
    assert data.splits["train"].turns.unique().tolist() == ([0, 1, 2, 3] if flags[0] else [0])
    assert data.splits["val"].turns.unique().tolist() == ([0, 1, 2, 3] if flags[0] else [0])
    assert data.splits["test"].turns.unique().tolist() == ([0, 1, 2, 3] if flags[1] else [0])
    assert (
        data.protocol["rotations"]
        == {
            (False, False): "none",
            (True, False): "90° as classes in training and validation; test upright",
            (True, True): "90° as classes in training, validation and test",
            (False, True): "90° as classes in test only",
        }[flags]
    )


def test_a_turn_for_each_class_of_an_episode_keeps_one_class_a_character(omniglot: Load) -> None:
    data = omniglot(rotations="episode")
    assert {name: len(split.counts) for name, split in data.splits.items()} == {"train": 1100, "val": 100, "test": 423}
    words = "a random quarter turn for each class of an episode in training and validation; test upright"
    assert data.protocol["rotations"] == words
    drawn = data.episodes("train", 20, 1, 1)
    draw = drawn.draw(200, torch.Generator().manual_seed(0))
    assert all(len({drawn.split.names[c] for c in row}) == 20 for row in draw["class"].tolist())
    assert sorted(set(draw["turn"].flatten().tolist())) == [0, 1, 2, 3]


def test_the_test_split_does_not_ask_how_training_turns(omniglot: Load) -> None:
    tests = [omniglot(rotations=kind).episodes("test", 5, 1, 1) for kind in (True, False, "episode")]
    draws = [drawn.draw(9, torch.Generator().manual_seed(0)) for drawn in tests]
    assert len({drawn.fingerprint for drawn in tests}) == 1
    assert all(draw.keys() == {"class", "image"} for draw in draws)
    assert all(draw["image"].equal(draws[0]["image"]) for draw in draws)


def test_twenty_shots_too_many_are_refused(omniglot: Load) -> None:
    with pytest.raises(UserError) as error:
        omniglot().episodes("test", 5, 15, 10)
    assert str(error.value) == (
        "data.shots=15 with data.queries=10 needs 25 images per class; omniglot has 20. Lower one of them."
    )


def test_strokes_are_one_and_paper_is_zero(small: Load, tmp_path: Path) -> None:
    pack_all(tmp_path)
    data = small(tmp_path, size=105)
    test = data.splits["test"]
    first = data.images[test.rows[test.names.index("S/character01"), 0], 0]
    assert first[10:30, 8:12].eq(255).all() and first[50:, 50:].eq(0).all()


def test_zips_folders_and_a_nested_folder_are_the_same_data(small: Load, tmp_path: Path) -> None:
    pack_all(tmp_path / "zips")
    pack_all(tmp_path / "nested" / "omniglot-py")
    for part in SMALL:
        zipfile.ZipFile(tmp_path / "zips" / f"{part}.zip").extractall(tmp_path / "folders")
    found = [small(tmp_path / place) for place in ("zips", "nested", "folders")]
    assert len({data.fingerprint for data in found}) == 1
    assert found[0].splits["train"].names == found[2].splits["train"].names


def test_a_change_of_the_files_is_seen_through_the_cache(small: Load, tmp_path: Path, own_cache: Path) -> None:
    pack_all(tmp_path)
    before = small(tmp_path)
    files = small_files("images_evaluation")
    files["images_evaluation/S/character01/00.png"] = drawing(9, 0, 19)
    pack(tmp_path, "images_evaluation", {**files, "images_evaluation/readme.txt": b"another size"})
    assert small(tmp_path).fingerprint != before.fingerprint
    assert small(tmp_path, size=14).shape == (1, 14, 14)
    assert len(list(own_cache.glob("omniglot-*"))) == 3


def one_line_error(small: Load, root: Path, **keys: Any) -> str:
    with pytest.raises(UserError) as error:
        small(root, **keys)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_lost_drawing_names_its_character(small: Load, tmp_path: Path) -> None:
    pack_all(tmp_path)
    files = small_files("images_background")
    del files["images_background/C/character02/07.png"]
    pack(tmp_path, "images_background", files)
    assert "C/character02 has 19 drawings instead of 20" in one_line_error(small, tmp_path)


def test_a_lost_character_is_counted(small: Load, tmp_path: Path) -> None:
    pack_all(tmp_path)
    files = {name: png for name, png in small_files("images_evaluation").items() if "T/character01" not in name}
    pack(tmp_path, "images_evaluation", files)
    assert "images_evaluation.zip has 3 characters instead of 4" in one_line_error(small, tmp_path)


def test_a_broken_png_is_named(small: Load, tmp_path: Path) -> None:
    pack_all(tmp_path)
    files = small_files("images_background")
    files["images_background/B/character01/03.png"] = files["images_background/B/character01/03.png"][:60]
    pack(tmp_path, "images_background", files)
    assert "B/character01/03.png cannot be read as an image" in one_line_error(small, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_broken_zip_is_named(small: Load, tmp_path: Path, damage: str) -> None:
    pack_all(tmp_path)
    path = tmp_path / "images_background.zip"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[200:240] = bytes(byte ^ 255 for byte in content[200:240])
    path.write_bytes(bytes({"cut": content[: len(content) // 2], "flipped": content, "text": b"404"}[damage]))
    assert "images_background.zip is damaged" in one_line_error(small, tmp_path)


def peak(work: Callable[[], object]) -> int:
    """Bytes of Python's that were in use at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", ["DEFLATED", "BZIP2", "LZMA"])
def test_a_zip_is_not_unpacked_to_more_than_it_may_hold(
    small: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    pack_all(tmp_path)
    with zipfile.ZipFile(tmp_path / "images_background.zip", "w", getattr(zipfile, f"ZIP_{method}")) as archive:
        archive.writestr("images_background/A/character01/00.png", bytes(2**26))
    monkeypatch.setattr(module, "UNPACKED", 2**20)
    message = "it unpacks to more than 1 MB" if method == "DEFLATED" else "it is compressed by another method"
    assert peak(lambda: one_line_error(small, tmp_path)) < 2**24
    assert f"images_background.zip is damaged ({message}" in one_line_error(small, tmp_path)


def test_many_files_together_are_bounded_too(small: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_all(tmp_path)
    monkeypatch.setattr(module, "UNPACKED", 20_000)
    assert "it unpacks to more than 0 MB" in one_line_error(small, tmp_path)


@pytest.mark.parametrize("place", ["images_background.zip", "images_background/A/character01/00.png"])
def test_pipes_are_not_waited_for(small: Load, tmp_path: Path, offline: None, place: str) -> None:
    pack_all(tmp_path)
    zipfile.ZipFile(tmp_path / "images_background.zip").extractall(tmp_path)
    (tmp_path / "images_background.zip").unlink()
    (tmp_path / place).unlink(missing_ok=True)
    os.mkfifo(tmp_path / place)
    if place.endswith("zip"):
        assert len(small(tmp_path).images) == 360  # the folder beside it is taken
    else:
        assert f"is damaged ({tmp_path / place} is no regular file)" in one_line_error(small, tmp_path)


def test_a_drawing_that_is_a_link_to_nowhere_is_told(small: Load, tmp_path: Path) -> None:
    pack_all(tmp_path / "zips")
    for part in SMALL:
        zipfile.ZipFile(tmp_path / "zips" / f"{part}.zip").extractall(tmp_path)
    drawing = tmp_path / "images_evaluation" / "S" / "character01" / "00.png"
    drawing.unlink()
    drawing.symlink_to("gone")
    assert "images_evaluation is damaged ([Errno 2] No such file" in one_line_error(small, tmp_path)


def listed(path: Path, *lines: str) -> dict[str, str]:
    path.write_text("\n".join(lines), encoding="utf-8")
    return {"split": "file", "split_file": str(path)}


def test_a_file_may_list_the_splits(small: Load, tmp_path: Path) -> None:
    pack_all(tmp_path)
    lines = (
        "# ours",
        "train A/character01",
        "train S/character02  # why not",
        "",
        "val  B/character01",
        "test T/character01",
    )
    data = small(tmp_path, **listed(tmp_path / "split.txt", *lines))
    assert characters(data, "train") == {"A/character01", "S/character02"}
    assert characters(data, "val") == {"B/character01"} and characters(data, "test") == {"T/character01"}
    assert data.protocol["split"].endswith("split.txt): 2/1/1 characters")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train Z/character99", "no such class"),
        ("test A/character01", "names the class A/character01 twice"),
        ("trian B/character01", "line 4 is not like `train Greek/character01`: trian B/character01"),
        ("train", "line 4 is not like"),
    ],
)
def test_a_wrong_line_of_the_file_is_named(small: Load, tmp_path: Path, line: str, message: str) -> None:
    pack_all(tmp_path)
    keys = listed(tmp_path / "split.txt", "train A/character01", "val A/character02", "test S/character01", line)
    error = one_line_error(small, tmp_path, **keys)
    assert message in error and "data.split_file=" in error


def test_splits_that_cannot_be_are_refused(small: Load, tmp_path: Path) -> None:
    pack_all(tmp_path)
    keys = listed(tmp_path / "split.txt", "train A/character01")
    assert "has no line for val and test" in one_line_error(small, tmp_path, **keys)
    keys["split_file"] = str(tmp_path / "absent.txt")
    assert "cannot be read" in one_line_error(small, tmp_path, **keys)
    assert "needs data.split_file" in one_line_error(small, tmp_path, split="file")
    assert "data.split=vinyals is not known. Take random, lake or file." in one_line_error(
        small, tmp_path, split="vinyals"
    )


@pytest.mark.usefixtures("offline")
def test_without_torchvision_the_error_says_what_to_put_where(small: Load, tmp_path: Path) -> None:
    error = one_line_error(small, tmp_path / "data")
    assert f"data.root={tmp_path / 'data'} has no Omniglot" in error
    assert "images_background.zip" in error and "data=glyphs" in error


@pytest.mark.usefixtures("offline")
def test_one_part_alone_is_not_enough(small: Load, tmp_path: Path) -> None:
    pack(tmp_path, "images_background", small_files("images_background"))
    assert "has no Omniglot" in one_line_error(small, tmp_path)


def test_a_download_is_used_and_not_repeated(small: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def original(root: str, background: bool, download: bool) -> None:
        calls.append((background, download))
        part = "images_background" if background else "images_evaluation"
        pack(Path(root) / "omniglot-py", part, small_files(part))

    torchvision_with(monkeypatch, original)
    assert len(small(tmp_path / "new").splits["test"].counts) == 4
    small(tmp_path / "new")
    assert calls == [(True, True), (False, True)]


@pytest.mark.parametrize("root", ["data", "data/deep/er", "there"])
def test_a_refused_or_failed_download_leaves_nothing(
    small: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    (tmp_path / "there").mkdir()

    def original(root: str, background: bool, download: bool) -> None:
        place = Path(root) / "omniglot-py"
        place.mkdir(exist_ok=True)
        (place / "images_background.zip").write_bytes(b"half of")
        if not background:
            raise OSError("the network is gone")

    for answer in (None, original):
        torchvision_with(monkeypatch, answer)
        assert "its download failed (" in one_line_error(small, tmp_path / root)
        assert [*tmp_path.rglob("*")] == [tmp_path / "there"]


def torchvision_with(monkeypatch: pytest.MonkeyPatch, original: Callable[..., None] | None) -> None:
    datasets = types.ModuleType("torchvision.datasets")
    datasets.Omniglot = original  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The real torchvision, pointed at a server on this machine that serves a small Omniglot."""
    reason = "torchvision is not here, or does not fit this torch"
    try:
        from torchvision.datasets import Omniglot as Original
    except (ImportError, RuntimeError, AttributeError):
        pytest.skip(reason)
    folder = tmp_path / "served"
    pack_all(folder)
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sums = {part: md5((folder / f"{part}.zip").read_bytes()).hexdigest() for part in SMALL}
    monkeypatch.setattr(Original, "download_url_prefix", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(Original, "zips_md5", sums)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    yield folder
    server.shutdown()
    server.server_close()


def test_torchvision_downloads_it(small: Load, served: Path, tmp_path: Path) -> None:
    data = small(tmp_path / "data")
    assert {name: len(split.counts) for name, split in data.splits.items()} == {"train": 16, "val": 40, "test": 4}
    assert (tmp_path / "data" / "omniglot-py" / "images_background.zip").is_file()


def test_a_failed_download_is_one_line(small: Load, served: Path, tmp_path: Path) -> None:
    (served / "images_evaluation.zip").unlink()
    error = one_line_error(small, tmp_path / "data")
    assert "404" in error and "data=glyphs" in error
