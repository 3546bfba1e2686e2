"""Checkpoints: what is saved comes back bit for bit, and what is broken is said in one line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from metarun.errors import UserError
from metarun.tracking import checkpoint

OLD = {"step": 1, "params": {"w": torch.ones(1000)}}
NEW = {"step": 2, "params": {"w": torch.zeros(1000)}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "checkpoints" / "last.pt", OLD)
    return tmp_path / "checkpoints" / "last.pt"


def untouched(path: Path) -> bool:
    return checkpoint.load(path)["step"] == 1 and [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_nested_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    state = {
        "params": {"w": torch.randn(3, 4, generator=generator), "half": torch.randn(5).half()},
        "optim": {"state": {0: {"step": torch.tensor(7.0), "lr": 0.1 + 0.2}}, "groups": [{"betas": (0.9, 0.999)}]},
        "rng": generator.get_state(),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
        "step": 2**40,
        "name": "mäml",
        "none": None,
        "flag": True,
    }
    checkpoint.save(tmp_path / "a.pt", state)
    back = checkpoint.load(tmp_path / "a.pt")
    for group, key in (("params", "w"), ("params", "half")):
        assert back[group][key].dtype == state[group][key].dtype
        assert torch.equal(back[group][key], state[group][key])
    assert torch.equal(back["rng"], state["rng"])
    assert torch.equal(back["odd"].view(torch.int32), state["odd"].view(torch.int32))
    assert back["optim"]["state"][0]["lr"] == 0.1 + 0.2
    assert back["optim"]["groups"] == [{"betas": (0.9, 0.999)}]
    assert {key: back[key] for key in ("step", "name", "none", "flag")} == {
        "step": 2**40,
        "name": "mäml",
        "none": None,
        "flag": True,
    }


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_crash_before_the_replace_leaves_the_old_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, moment, crash)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(path, NEW)
    assert untouched(path)


def test_a_full_disk_leaves_the_old_one_and_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"last\.pt: No space left on device\. Free some space") as error:
            checkpoint.save(path, NEW)
    assert "\n" not in str(error.value)
    assert untouched(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_really_full_device_leaves_the_old_one(path: Path) -> None:
    part = path.with_name(f".{path.name}.tmp")
    part.symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save(path, NEW)
    assert untouched(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the run directory should be")
    with pytest.raises(UserError, match=r"run/last\.pt: .*hydra\.run\.dir"):
        checkpoint.save(tmp_path / "run" / "last.pt", NEW)


def test_what_a_killed_run_left_behind_is_cleaned_up(path: Path) -> None:
    path.with_name(f".{path.name}.tmp").write_bytes(b"half a checkpoint")
    checkpoint.save(path, NEW)
    assert checkpoint.load(path)["step"] == 2
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("keep", [0, 10, 1000, -10])
def test_a_truncated_checkpoint_names_the_one_that_can_be_read(path: Path, keep: int) -> None:
    checkpoint.save(path.with_name("best.pt"), OLD)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"last\.pt is damaged .*best\.pt is whole") as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value)


def test_a_broken_neighbour_is_not_offered(path: Path) -> None:
    path.write_bytes(b"hello")
    path.with_name("best.pt").write_bytes(b"hello too")
    with pytest.raises(UserError, match="Start the run anew") as error:
        checkpoint.load(path)
    assert "best.pt" not in str(error.value)


def test_a_missing_checkpoint_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no checkpoint .*last\.pt\. Start the run anew"):
        checkpoint.load(tmp_path / "last.pt")


class Trap:
    """Unpickled carelessly, this leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"trap": Trap(tmp_path / "sprung")}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "last.pt")
    assert not (tmp_path / "sprung").exists()


def test_every_flipped_bit_of_the_content_is_found(path: Path) -> None:
    """Between the parts of the archive lie gaps, of which no bit means anything."""
    whole, found = path.read_bytes(), 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            assert checkpoint.load(path)["params"]["w"].equal(OLD["params"]["w"])  # type: ignore[index]
        except UserError as error:
            assert "\n" not in str(error)
            found += 1
    assert found > 4000 / 7  # the bytes of its numbers


def test_missing_and_wrong_entries_are_named(path: Path) -> None:
    for entries, told in (({"optimizer": dict}, "optimizer is missing"), ({"step": str}, "step is wrong")):
        with pytest.raises(UserError, match=told):
            checkpoint.load(path, entries)
    assert checkpoint.load(path, {"step": int})["step"] == 1


def test_something_else_than_a_dict_is_not_a_checkpoint(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "last.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.load(tmp_path / "last.pt")
