"""A stranger's run directory runs no code that the user did not choose."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metarun.cli.overrides import parsed
from metarun.cli.trust import check_targets
from metarun.errors import UserError


@pytest.mark.parametrize(
    "name",
    [
        *("os.mkdir", "metarun.run.os.mkdir", "metarun.algos.maml.os.mkdir", "mine.os.mkdir", "mine:os.mkdir"),
        *("metarun.tracking.atomic.replace", "metarun.data.omniglot._download", "torch.optim.adam.torch.load"),
        *("yaml.safe_load", "metarun.data.images.cache.cached", "metarun.backbones.sharing.mmoe.Gate"),
    ],
)
def test_code_that_is_neither_metaruns_nor_found_here_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("import os")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    nested = {"algo": {"phases": {5: {"deep": [{"_target_": name}]}}}}
    for config in ({"algo": {"_target_": name}}, nested, {"test": {"keys": {"_target_": name}}}):
        with pytest.raises(UserError, match=f"_target_={name}"):
            check_targets(config, [], [str(tmp_path)])


def test_what_is_ours_or_lies_here_or_was_typed_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("class Mine: ...")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    config = {
        "algo": {"_target_": "mine.Mine"},
        "optim": {"_target_": "torch.optim.Adam"},
        "data": {"_target_": "metarun.data.omniglot.Omniglot"},
        "schedule": {"_target_": "metarun.optim.schedules.cosine"},
        "backbone": {"_target_": "os.mkdir"},
        "sharing": {"_target_": "metarun.backbones.sharing.mmoe.MMoE"},
    }
    check_targets(config, parsed(["backbone._target_=os.mkdir"]), [str(tmp_path)])
    with pytest.raises(UserError, match=r"algo\._target_=mine\.Mine.*mine\.py lies"):
        check_targets(config, parsed(["backbone._target_=os.mkdir"]), [str(tmp_path / "elsewhere")])


def rewritten(folder: str, *words: str) -> None:
    """The record of a run, as someone else might have written it."""
    file = Path(folder, ".hydra/overrides.yaml")
    file.write_text(yaml.safe_dump([*yaml.safe_load(file.read_text()), *words]))


@pytest.mark.parametrize("typed", [(), ("test.only=true",)])
def test_a_strangers_run_makes_no_folder(quick: Callable[..., Any], metarun: Callable[..., Any], typed: Any) -> None:
    quick("hydra.run.dir=run")
    callback = "+hydra.callbacks.x={_target_:os.mkdir,path:called}"
    rewritten("run", "schedule._target_=os.mkdir", "+schedule.path=made", callback)
    refused = metarun("resume=run", *typed)
    assert refused.code == 2 and "schedule._target_=os.mkdir" in refused.err
    assert not Path("made").exists() and not Path("called").exists()


def test_a_recorded_folder_of_yaml_is_taken_only_when_it_is_named_again(
    quick: Callable[..., Any], metarun: Callable[..., Any]
) -> None:
    Path("theirs/optim").mkdir(parents=True)
    Path("theirs/optim/mine.yaml").write_text("_target_: torch.optim.Adam\nlr: 0.1\n")
    assert quick("--config-dir=theirs", "optim=mine", "hydra.run.dir=run").code == 0
    refused = metarun("resume=run", "train.steps=3")
    assert refused.code == 2 and "--config-dir" in refused.err and "theirs" in refused.err
    assert metarun("resume=run", "train.steps=3", "--config-dir=theirs").code == 0
    Path("theirs").rename("conf")
    assert metarun("resume=run", "train.steps=4").code == 0
