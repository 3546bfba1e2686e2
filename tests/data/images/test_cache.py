from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metarun.data.images import cache
from metarun.data.images.cache import alone, cached
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


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != "locks"]


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
    (entry,) = entries(own_cache)
    assert entry.name.startswith("set-") and len(entry.name) == len("set-") + 12
    assert {path.name for path in entry.iterdir()} == {"images.npy", "manifest.json"}


def test_another_key_or_name_is_another_entry(own_cache: Path) -> None:
    cached("set", {"size": 4}, recipe)
    assert same(cached("set", {"size": 5}, lambda: recipe(1)), collection(1))
    assert same(cached("other", {"size": 4}, lambda: recipe(2)), collection(2))
    assert len(entries(own_cache)) == 3


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
    (entry,) = entries(own_cache)
    damage(entry)
    with caplog.at_level(logging.WARNING):
        assert same(cached("set", {}, recipe), collection())
    (message,) = caplog.messages
    assert "is damaged" in message and "\n" not in message
    assert same(cached("set", {}, never), collection())
    assert entries(own_cache) == [entry]  # nothing is left beside it


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
    assert "No space left on device" in caplog.text and entries(own_cache) == []
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
    (entry,) = entries(own_cache)
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
    (entry,) = entries(own_cache)
    cut_the_images(entry)
    os.utime(file, ns=(written, written))
    assert same(cached("set", {}, recipe), collection())


def test_a_failed_build_leaves_nothing(own_cache: Path) -> None:
    with pytest.raises(AssertionError, match="built again"):
        cached("set", {}, never)
    assert entries(own_cache) == []


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METARUN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cached("set", {}, recipe)
    assert len(entries(tmp_path / "xdg" / "metarun")) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cached("set", {}, recipe)
    assert len(entries(tmp_path / "home" / ".cache" / "metarun")) == 1


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


def twins(count: int, seconds: float) -> list[list[str]]:
    """What so many processes print that start together: "built" if they build the entry, and its fingerprint."""

    def start() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", TWIN.format(path=sys.path), str(seconds)]
        return subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe)

    started = [start() for _ in range(count)]
    for twin in started:
        assert twin.stdin is not None
        twin.stdin.write("go\n")
        twin.stdin.flush()
    answers = [twin.communicate(timeout=60) for twin in started]
    assert all(line.startswith("Waiting for process") for _, err in answers for line in err.splitlines())
    return [out.split() for out, _ in answers]


def test_of_processes_that_start_together_one_decodes(own_cache: Path) -> None:
    answers = twins(3, 1.0)
    assert sorted(len(answer) for answer in answers) == [1, 1, 2]  # one has built it
    assert len({answer[-1] for answer in answers}) == 1
    (entry,) = entries(own_cache)
    assert not entry.name.startswith(".")
    assert cached("twin", {}, never).fingerprint == answers[0][-1]


def test_where_there_are_no_locks_two_processes_that_build_at_once_are_both_fine(own_cache: Path) -> None:
    own_cache.mkdir()
    (own_cache / "locks").touch()  # no folder can be made there
    answers = twins(2, 0.5)
    assert answers[0][-1] == answers[1][-1]
    assert len(entries(own_cache)) == 1
    assert cached("twin", {}, never).fingerprint == answers[0][-1]


def test_who_waits_is_told_for_whom(own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    hold = """
import sys
sys.path[:0] = {path!r}
from metarun.data.images.cache import alone
with alone("work", "works"):
    print("held", flush=True)
    sys.stdin.readline()
"""
    command = [sys.executable, "-c", hold.format(path=sys.path)]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdin and holder.stdout.readline() == "held\n"
        threading.Timer(0.2, holder.stdin.write, ["\n"]).start()
        threading.Timer(0.3, holder.stdin.flush).start()
        with caplog.at_level(logging.WARNING), alone("work", "works"):
            pass
        assert f"Waiting for process {holder.pid} on " in caplog.text and ", which works." in caplog.text


def test_a_cache_that_may_only_be_read_is_read(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached("set", {}, recipe)
    monkeypatch.setattr(cache, "locked", never)
    monkeypatch.setattr(cache, "_write", never)
    assert same(cached("set", {}, never), collection())
