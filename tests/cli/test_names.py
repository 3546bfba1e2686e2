"""What directories and files of runs are called."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from metarun.cli.names import label, new_folder, sweep_name, typed_label
from metarun.errors import UserError


def test_runs_of_one_second_get_directories_of_their_own(tmp_path: Path) -> None:
    place = str(tmp_path / "outputs" / "10-12-33_maml")
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(new_folder, [place] * 8))
    assert len(set(taken)) == 8 and place in taken and f"{place}-8" in taken


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run.*hydra\.run\.dir"):
        new_folder(str(tmp_path / "file" / "run"))


def test_a_repeated_test_is_called_by_its_name_or_by_what_was_typed(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("[data=omniglot, seed=1]")
    session = ["data=omniglot", "seed=1", "resume='x'", "test.only=true"]
    assert typed_label(session, tmp_path) == "test"
    assert typed_label([*session, "test.shots=5", "test.data=glyphs"], tmp_path) == "test.shots=5,test.data=glyphs"
    assert typed_label([*session, "test.shots=5", "name='five'"], tmp_path) == "five"


def test_a_label_can_be_part_of_a_file_name() -> None:
    assert label("test.root=/my photos/ä") == "test.root=-my-photos-ä"
    assert len(label("x" * 1000)) < 200


def test_a_sweep_is_called_by_its_name_or_its_algorithms_and_data() -> None:
    choices = {"algo": "maml", "data": "glyphs"}
    assert sweep_name(["algo=maml,mtl", "seed=0,1"], choices) == "maml,mtl_glyphs"
    assert sweep_name(["name=mine"], choices) == "mine"
    assert sweep_name(["experiment=quick/a,quick/b", "seed=0,1"], choices) == "quick-a,quick-b"
