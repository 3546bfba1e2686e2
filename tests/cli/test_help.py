"""The help page says what is so: every choice, key and command on it is one that works."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metarun.cli import CONF
from metarun.cli.help import EXAMPLES, FIRST, KEYS, UNSEEN, comment, help_page

SPLIT = re.compile(r"(?<![\w.])((?:\w+\.)*\w+=\S*\w)")


def test_every_choice_of_every_group_stands_there_with_its_line() -> None:
    page = help_page(CONF)
    for file in CONF.glob("*/*.yaml"):
        if file.parent.name in UNSEEN:
            continue
        assert f"\n{file.parent.name}=\n" in page
        assert re.search(rf"^    {file.stem} +{re.escape(comment(file))}$", page, re.MULTILINE)


def test_groups_stand_in_the_order_of_use_and_new_ones_after_them(tmp_path: Path) -> None:
    for group in ("early", "data", "algo"):
        (tmp_path / "conf" / group).mkdir(parents=True)
    assert re.findall(r"^(\w+)=$", help_page(tmp_path / "conf"), re.MULTILINE) == ["algo", "data", "early"]


def test_no_group_of_ours_is_left_to_come_last() -> None:
    assert {folder.name for folder in CONF.iterdir() if folder.is_dir()} <= {*FIRST, *UNSEEN}


def test_there_are_ten_keys_and_five_examples() -> None:
    assert (len(KEYS), len(EXAMPLES)) == (10, 5)


@pytest.mark.parametrize("line", [f"{typed} {meaning}" for typed, meaning in KEYS])
def test_every_key_composes(metarun: Callable[..., Any], line: str) -> None:
    keys = SPLIT.findall(line)
    assert keys
    outcome = metarun(*keys, *(["data=omniglot"] if "data.root" in line else []), "--cfg", "job")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("command", [command for command, _ in EXAMPLES])
def test_every_example_composes(metarun: Callable[..., Any], command: str) -> None:
    program, *arguments = shlex.split(command)
    run = Path("outputs/2026-11-21/10-12-33_maml_omniglot/.hydra")
    run.mkdir(parents=True)
    (run / "overrides.yaml").write_text("[data=omniglot]\n")
    assert program == "metarun"
    many = [a.partition(",")[0] if "-m" in arguments else a for a in arguments if a != "-m"]
    outcome = metarun(*many, "--cfg", "job")
    assert outcome.code == 0, outcome.err


def test_help_is_asked_for_in_three_ways_and_amid_other_words(metarun: Callable[..., Any]) -> None:
    pages = {metarun(*typed).out for typed in (["--help"], ["-h"], ["help"], ["algo=maml", "--help"])}
    assert pages == {help_page(CONF) + "\n"}


def test_choices_in_a_folder_are_named_in_one_line() -> None:
    page = help_page(CONF)
    for folder in (CONF / "experiment").glob("*/"):
        first = sorted(file.stem for file in folder.glob("*.yaml"))[0]
        assert re.search(rf"^    {folder.name}/ +{first}, ", page, re.MULTILINE)
