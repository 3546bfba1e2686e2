"""A run goes on as what it was: with its data, wherever one stands, and with its choices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

PHOTOS = (
    *("data=folder", "data.size=12", "data.colour=false", "data.ways=2", "backbone.channels=[4]", "parallel=vmap"),
    *("train.tasks=2", "val.tasks=2", "test.tasks=2", "val.every=1", "test.adapt_steps=1", "hydra.run.dir=run"),
)


def steps(folder: str = "run") -> int:
    return json.loads(Path(folder, "result.json").read_text())["steps"]


@pytest.fixture
def photos(metarun: Callable[..., Any], write_images: Callable[..., Path]) -> Callable[..., Any]:
    """A run of one step on the images of METARUN_DATA; what is returned takes other commands."""
    write_images(Path("data"))
    assert metarun(*PHOTOS, "train.steps=1").code == 0
    return metarun


def test_a_run_goes_on_without_the_variable_and_in_another_folder(
    photos: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("METARUN_DATA")
    assert photos("resume=../run", "train.steps=2").code == 0 and steps("../run") == 2
    monkeypatch.setenv("METARUN_DATA", "somewhere")
    assert photos("resume=../run", "test.only=true").code == 0


def test_a_relative_root_is_meant_from_where_the_run_was_started(
    metarun: Callable[..., Any], write_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(Path("photos"))
    write_images(Path("others"), groups=5)
    other = ("test.data=folder", "test.root=others", "data.size=84", "data.colour=true")
    assert metarun(*PHOTOS, *other, "data.root=photos", "train.steps=1").code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert photos_root(tmp_path) == str(tmp_path / "photos")
    assert metarun("resume=../run", "train.steps=2").code == 0 and steps("../run") == 2


def photos_root(folder: Path) -> str:
    return torch.load(folder / "run/checkpoints/best.pt", weights_only=True)["run"]["config"]["data"]["root"]


def test_new_classes_are_named_and_refused(photos: Callable[..., Any]) -> None:
    (first, *_) = sorted(folder for folder in Path("data").rglob("*") if any(folder.glob("*.png")))
    for name in ("zebra", "yak"):
        shutil.copytree(first, first.with_name(name))
    for again in (("train.steps=2",), ("test.only=true",)):
        refused = photos("resume=run", *again)
        assert refused.code == 2 and "2 new classes" in refused.err and "zebra" in refused.err
    assert steps() == 1


def test_other_content_under_the_same_names_is_refused(photos: Callable[..., Any]) -> None:
    one, other, *_ = sorted(Path("data").rglob("*.png"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    assert "their content has changed" in photos("resume=run", "train.steps=2").err
    one.write_bytes(content)
    assert photos("resume=run", "train.steps=2").code == 0


def test_other_data_are_refused_with_both_places(
    photos: Callable[..., Any], write_images: Callable[..., Path], tmp_path: Path
) -> None:
    write_images(Path("b"), groups=5)
    refused = photos("resume=run", "data.root=b")
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert f"They lay in {tmp_path / 'data'}, and are read from {tmp_path / 'b'} now" in refused.err


def test_a_moved_folder_is_named_by_its_new_root(photos: Callable[..., Any]) -> None:
    Path("data").rename("moved")
    assert "data.root=" in photos("resume=run").err
    assert photos("resume=run", "data.root=moved", "train.steps=2").code == 0
    assert photos("resume=run", "train.steps=3").code == 0 and steps() == 3


def test_another_split_of_the_same_classes_is_refused(photos: Callable[..., Any]) -> None:
    assert "classes changed their split" in photos("resume=run", "data.split_seed=5").err


@pytest.mark.parametrize("typed", ["algo=reptile", "optim=sgd", "backbone=conv2"])
def test_another_choice_is_named_as_it_was_typed(photos: Callable[..., Any], typed: str) -> None:
    group = typed.partition("=")[0]
    refused = photos("resume=run", typed)
    assert refused.code == 2 and refused.err.startswith(f"metarun: {typed}: the run in ") and f"{group}=" in refused.err


def test_a_checkpoint_tells_all_that_is_needed_to_use_it(photos: Callable[..., Any]) -> None:
    for name in ("last.pt", "best.pt"):
        saved = torch.load(f"run/checkpoints/{name}", weights_only=True)["run"]
        assert saved["choices"]["algo"] == "maml" and saved["config"]["train"]["steps"] == 1
        assert (saved["shape"], saved["heads"]) == ([1, 12, 12], {"class": ["class", 2]})
        assert set(saved["data"]["classes"]) == {"train", "val", "test"}


def test_a_resumed_run_says_where_it_goes_on_and_how_long_it_took(quick: Callable[..., Any]) -> None:
    quick("hydra.run.dir=run")
    out = quick("resume=run", "train.steps=4").out
    assert "going on from step 2 of 4" in out and "trained for 0:00:0" in out
