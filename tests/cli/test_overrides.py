"""What is typed becomes what Hydra reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from metarun.cli.overrides import label, parted, quoted, rewritten, sweep_name, typed_label
from metarun.errors import UserError

STRANGE = ("plain", "it's", "a=b,c", "with space", "[x]", "(1)", 'say "so"', "$HOME", "a\\b")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(folder: Path, *overrides: str) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    return folder


@pytest.mark.parametrize("text", STRANGE)
def test_hydra_reads_a_quoted_text_as_it_is(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={quoted(text)}"])
    assert override.value() == text


def test_flags_stand_anywhere() -> None:
    typed = ["a=1", "-m", "b=2", "--config-dir", "mine", "c=3", "--cfg=job"]
    assert parted(typed) == (["-m", "--config-dir", "mine", "--cfg", "job"], ["a=1", "b=2", "c=3"])


@pytest.mark.parametrize("name", STRANGE)
def test_any_directory_can_be_resumed(tmp_path: Path, name: str) -> None:
    folder = run(tmp_path / name, "algo=reptile", "seed=1", f"resume={quoted('elsewhere')}", "test.only=true")
    arguments = rewritten([f"resume={folder}", "seed=2"], tmp_path)
    assert arguments[:2] == ["algo=reptile", "seed=2"]
    parsed = OverridesParser.create().parse_overrides(arguments)
    values = {override.get_key_element(): override.value() for override in parsed}
    assert values["resume"] == values["hydra.run.dir"] == str(folder)
    assert "test.only" not in values


def test_a_repeated_test_is_called_by_its_name_or_by_what_was_typed(tmp_path: Path) -> None:
    folder = run(tmp_path, "data=omniglot", "seed=1")
    session = ["data=omniglot", "seed=1", "resume='x'", "test.only=true"]
    assert typed_label(session, folder) == "test"
    assert typed_label([*session, "test.shots=5", "test.data=glyphs"], folder) == "test.shots=5,test.data=glyphs"
    assert typed_label([*session, "test.shots=5", "name=five"], folder) == "five"


def test_a_label_can_be_part_of_a_file_name() -> None:
    assert label("test.root=/my photos/ä") == "test.root=-my-photos-ä"
    assert len(label("x" * 1000)) < 200


def test_a_sweep_is_called_by_its_name_or_its_algorithms_and_data() -> None:
    choices = {"algo": "maml", "data": "glyphs"}
    assert sweep_name(["algo=maml,mtl", "seed=0,1"], choices) == "maml,mtl_glyphs"
    assert sweep_name(["name=mine"], choices) == "mine"


def test_a_conf_folder_is_found_unless_another_is_named(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    assert rewritten([], tmp_path / "shipped") == ["--config-dir", str(tmp_path / "conf")]
    assert rewritten(["--config-dir", "mine"], tmp_path / "shipped") == ["--config-dir", "mine"]
    assert rewritten([], tmp_path / "conf") == []


def test_jobs_are_called_by_what_is_swept(tmp_path: Path) -> None:
    *_, last = rewritten(["-m", "algo=maml,mtl", "seed=range(3)", "data.shots=5", "betas=[0,1]"], tmp_path)
    assert last == "hydra.job.config.override_dirname.exclude_keys=['data.shots','betas']"


def test_what_is_no_override_is_answered_at_once(tmp_path: Path) -> None:
    for typed in ("train", "=3", "--hlep", "-x"):
        with pytest.raises(UserError, match=typed):
            rewritten([typed], tmp_path)
