"""What is typed becomes what Hydra reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from metarun.cli.overrides import for_hydra, parted, quoted
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
    assert parted(typed) == (["--multirun", "--config-dir", "mine", "--cfg", "job"], ["a=1", "b=2", "c=3"])


@pytest.mark.parametrize("name", STRANGE)
def test_any_directory_can_be_resumed(tmp_path: Path, name: str) -> None:
    folder = run(tmp_path / name, "algo=reptile", "seed=1", f"resume={quoted('elsewhere')}", "test.only=true")
    arguments = for_hydra([f"resume={folder}", "seed=2"], tmp_path)
    assert arguments[:2] == ["algo=reptile", "seed=2"]
    parsed = OverridesParser.create().parse_overrides(arguments)
    values = {override.get_key_element(): override.value() for override in parsed}
    assert values["resume"] == values["hydra.run.dir"] == str(folder)
    assert "test.only" not in values


def test_a_conf_folder_is_found_unless_another_is_named(tmp_path: Path) -> None:
    for name in ("conf", "mine"):
        (tmp_path / name).mkdir()
    assert for_hydra([], tmp_path / "shipped") == ["--config-dir", str(tmp_path / "conf")]
    assert for_hydra(["--config-dir", "mine"], tmp_path / "shipped") == ["--config-dir", "mine"]
    assert for_hydra([], tmp_path / "conf") == []


def test_jobs_are_called_by_what_is_swept(tmp_path: Path) -> None:
    *_, last = for_hydra(["-m", "algo=maml,mtl", "seed=range(3)", "data.shots=5", "betas=[0,1]"], tmp_path)
    assert last == "hydra.job.config.override_dirname.exclude_keys=['data.shots','betas']"


def test_a_value_means_what_hydra_reads_in_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name it with resume="):
        for_hydra(["++test.only=TRUE"], tmp_path)
    (tmp_path / "an old run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "an old run" / "checkpoints" / "last.pt").touch()
    with pytest.raises(UserError, match="holds a run already"):
        for_hydra(['hydra.run.dir="an old run"'], tmp_path)
    assert for_hydra(["resume=null"], tmp_path)[0] == "resume=null"


def test_what_is_no_override_is_answered_at_once(tmp_path: Path) -> None:
    for typed in ("train", "=3", "~", "--hlep", "-x"):
        with pytest.raises(UserError, match=typed):
            for_hydra([typed], tmp_path)
