from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metarun.data.images import cache
from metarun.data.images.cache import cached
from metarun.data.images.collection import Collection, Recipe
from metarun.data.images.mapped import Mapped
from metarun.errors import UserError


def recipe(seed: int = 0) -> Recipe:
    pixels = torch.randint(0, 256, (6, 1, 4, 4), generator=torch.Generator().manual_seed(seed)).byte()
    return Recipe(pixels.split(4), (1, 4, 4), torch.tensor([0, 0, 1, 1, 2, 2]), ("a", "b", "ç"), ("x", "x", "y"))


def collection(seed: int = 0) -> Collection:
    return recipe(seed).in_memory()


def never() -> Recipe:
    raise AssertionError("built again")


def same(one: Collection, other: Collection) -> bool:
    images = [torch.cat([*each.images.split(4)]) for each in (one, other)]
    return (
        images[0].equal(images[1])
        and one.labels.equal(other.labels)
        and (one.names, one.groups, one.fingerprint) == (other.names, other.groups, other.fingerprint)
    )


def test_a_second_call_reads_what_the_first_wrote(own_cache: Path) -> None:
    made = cached("set", {"size": 4}, recipe)
    assert same(made, collection())
    assert same(cached("set", {"size": 4}, never), made)
    (entry,) = own_cache.iterdir()
    assert entry.name.startswith("set-") and len(entry.name) == len("set-") + 12
    assert {path.name for path in entry.iterdir()} == {"images.npy", "manifest.json"}


def test_another_key_or_name_is_another_entry(own_cache: Path) -> None:
    cached("set", {"size": 4}, recipe)
    assert same(cached("set", {"size": 5}, lambda: recipe(1)), collection(1))
    assert same(cached("other", {"size": 4}, lambda: recipe(2)), collection(2))
    assert len(list(own_cache.iterdir())) == 3


def flip_a_pixel(entry: Path) -> None:
    content = bytearray((entry / "images.npy").read_bytes())
    content[-1] ^= 1
    (entry / "images.npy").write_bytes(content)


def cut_the_images(entry: Path) -> None:
    (entry / "images.npy").write_bytes((entry / "images.npy").read_bytes()[:-5])


def garble_the_header(entry: Path) -> None:
    content = bytearray((entry / "images.npy").read_bytes())
    content[8:40] = b"(" * 32
    (entry / "images.npy").write_bytes(content)


def remove_the_images(entry: Path) -> None:
    (entry / "images.npy").unlink()


def cut_the_manifest(entry: Path) -> None:
    (entry / "manifest.json").write_text((entry / "manifest.json").read_text()[:20])


def change_a_label(entry: Path) -> None:
    manifest = json.loads((entry / "manifest.json").read_text())
    manifest["labels"][0] = 2
    (entry / "manifest.json").write_text(json.dumps(manifest))


def change_the_key(entry: Path) -> None:
    manifest = json.loads((entry / "manifest.json").read_text())
    (entry / "manifest.json").write_text(json.dumps({**manifest, "key": "another"}))


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_pixel,
        cut_the_images,
        garble_the_header,
        remove_the_images,
        cut_the_manifest,
        change_a_label,
        change_the_key,
    ],
)
def test_a_damaged_entry_is_rebuilt(
    own_cache: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    cached("set", {}, recipe)
    (entry,) = own_cache.iterdir()
    damage(entry)
    with caplog.at_level(logging.WARNING):
        assert same(cached("set", {}, recipe), collection())
    (message,) = caplog.messages
    assert "is damaged" in message and "\n" not in message
    assert same(cached("set", {}, never), collection())
    assert list(own_cache.iterdir()) == [entry]  # nothing is left beside it


def test_an_unwritable_cache_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert same(cached("set", {}, recipe), collection())
    assert "cannot be written" in caplog.text


def test_a_full_disk_is_known_before_anything_is_decoded(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 95}))
    with caplog.at_level(logging.WARNING):
        assert same(cached("set", {}, recipe), collection())
    assert "No space left on device" in caplog.text and list(own_cache.iterdir()) == []
    monkeypatch.setattr(cache, "free_memory", lambda _: 150)

    def undecoded() -> Iterator[torch.Tensor]:
        raise AssertionError("decoded")
        yield

    with pytest.raises(UserError, match=r"cannot be written .* and 0\.0 GB of images are too many for memory"):
        cached("set", {}, lambda: replace(recipe(), pieces=undecoded()))


def test_a_large_entry_is_read_whole_only_if_it_was_touched(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "LARGE", 0)
    cached("set", {}, recipe)
    (entry,) = own_cache.iterdir()
    file = entry / "images.npy"
    written = file.stat().st_mtime_ns

    with monkeypatch.context() as patch:
        patch.setattr(Mapped, "split", never)
        found = cached("set", {}, never)
    assert same(found, collection())
    flip_a_pixel(entry)
    os.utime(file, ns=(written, written))
    assert not same(cached("set", {}, never), collection())  # taken at its word
    os.utime(file, ns=(written, written + 1))
    assert same(cached("set", {}, recipe), collection()) and "is damaged" in caplog.text
    (entry,) = own_cache.iterdir()
    cut_the_images(entry)
    os.utime(file, ns=(written, written))
    assert same(cached("set", {}, recipe), collection())


def test_a_failed_build_leaves_nothing(own_cache: Path) -> None:
    with pytest.raises(AssertionError, match="built again"):
        cached("set", {}, never)
    assert not own_cache.exists()


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METARUN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cached("set", {}, recipe)
    assert len(list((tmp_path / "xdg" / "metarun").iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cached("set", {}, recipe)
    assert len(list((tmp_path / "home" / ".cache" / "metarun").iterdir())) == 1


def test_threads_that_write_and_damage_at_once_always_get_the_content(own_cache: Path) -> None:
    def work(turn: int) -> bool:
        if turn % 3 == 0:
            for file in own_cache.glob("set-*/manifest.json"):
                with contextlib.suppress(FileNotFoundError):  # the entry may just have stepped aside
                    file.write_text("{")
        return same(cached("set", {}, recipe), collection())

    cached("set", {}, recipe)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
    assert same(cached("set", {}, recipe), collection())


TWIN = """
import sys, time
sys.path[:0] = {path!r}
import torch
from metarun.data.images.cache import cached
from metarun.data.images.collection import Recipe

def make():
    print("built", flush=True)
    time.sleep(float(sys.argv[1]))
    return Recipe([torch.full((6, 1, 4, 4), 7).byte()], (1, 4, 4), torch.arange(6), tuple("abcdef"), ("x",) * 6)

sys.stdin.readline()  # both start together
print(cached("twin", {{}}, make).fingerprint)
"""


def test_two_processes_that_build_at_once_are_both_fine(own_cache: Path) -> None:
    def start() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", TWIN.format(path=sys.path), "0.5"]
        return subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe)

    twins = [start(), start()]
    for twin in twins:
        assert twin.stdin is not None
        twin.stdin.write("go\n")
        twin.stdin.flush()
    answers = [twin.communicate(timeout=60) for twin in twins]
    assert [error for _, error in answers] == ["", ""]
    assert answers[0][0].split()[-1] == answers[1][0].split()[-1]
    (entry,) = own_cache.iterdir()
    assert not entry.name.startswith(".")
    assert cached("twin", {}, never).fingerprint == answers[0][0].split()[-1]
