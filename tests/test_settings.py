"""Sections of the config: which keys they have, their units, and what is refused before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from metarun import settings
from metarun.cli import CONF
from metarun.construct import COMPUTE_ONLY, construct, marked
from metarun.engine.device import pick
from metarun.errors import UserError
from metarun.settings import SECTIONS, Job, check_sections, seconds

OWN: dict[str, type] = {"": settings.Root, "train": settings.Train, "val": settings.Val, "test": settings.Test}


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    """The config of `metarun data=omniglot`, as the parts are built from it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", ["data=omniglot", "name=test"])
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    del plain["algo"]["phases"]
    return plain


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1.5d", 129600), (12, 12), (None, float("inf"))]
)
def test_times_are_read_in_seconds(text: Any, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["soon", "-1s", "10 minutes", "h", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"train\.max_time"):
        seconds(text)


@pytest.mark.parametrize(
    ("name", "section"),
    OWN.items(),
)
def test_the_defaults_of_a_section_are_all_its_keys(defaults: dict[str, Any], name: str, section: type) -> None:
    values = defaults[name] if name else {k: v for k, v in defaults.items() if not isinstance(v, dict)}
    assert vars(construct(values, name, section)) == values


def test_training_and_test_take_the_ways_of_the_data_unless_told(defaults: dict[str, Any]) -> None:
    assert defaults["data"]["ways"] == defaults["train"]["ways"] == defaults["test"]["ways"]


def check(config: dict[str, Any]) -> None:
    Job(config, {}, None, Path(), "", lambda: None).check()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data.shots", 0, "data.shots=0 is too small. Give 1 or more, but less than 1000001."),
        ("algo.inner_steps", -1, "algo.inner_steps=-1 is too small. Give 0 or more, but less than 1001."),
        ("algo.inner_lr", float("inf"), "algo.inner_lr=inf is not finite. Give a number."),
        ("optim.lr", -1, "optim.lr=-1 is too small. Give 0 or more."),
        ("optim.eps", float("nan"), "optim.eps=nan is not finite. Give a number."),
        ("optim.betas", [0.9, "x"], "optim.betas=[0.9, 'x'] does not fit. Give a list of 2 numbers."),
        ("backbone.channels", [8, 0], "backbone.channels=[8, 0]: 0 is too small. Give 1 or more."),
        ("backbone.dropout", 1, "backbone.dropout=1 is too large. Give 0 or more, but less than 1."),
        ("schedule.warmup", 10**400, "schedule.warmup=1"),
        ("data.sise", 3, "data.sise is no key here. Did you mean data.size"),
    ],
)
def test_what_a_chosen_part_cannot_take_is_refused_before_anything_is_built(
    defaults: dict[str, Any], key: str, value: Any, words: str
) -> None:
    check(defaults)
    section, _, name = key.partition(".")
    with pytest.raises(UserError) as told:
        check(defaults | {section: defaults[section] | {name: value}})
    assert str(told.value).startswith(words)


SEEDS = ("seed", "val.seed", "test.seed", "data.split_seed")
FLOATS = ("optim.lr", "optim.eps", "optim.weight_decay", "algo.inner_lr", "train.clip_value", "schedule.final")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        *((key, value, "64 bits") for key in SEEDS for value in (2**63, 2**64, 10**30)),
        *((key, -1, "0 or more") for key in SEEDS),
        *((key, value, "32-bit number") for key in FLOATS for value in (1e300, 1e39, 1e-60)),
        *((key, value, "not finite") for key in FLOATS for value in (float("inf"), float("nan"))),
        ("train.clip_norm", 0, "more than 0"),
        ("train.clip_value", 0.0, "more than 0"),
        ("algo.inner_steps", 10**9, "less than 1001"),
        ("test.adapt_steps", 10**9, "less than 1001"),
        ("data.size", 10**6, "less than 4097"),
        ("optim.betas", [0.9], "2 numbers"),
        ("optim.betas", [], "2 numbers"),
        ("test.shots", [], "a whole number or a list of 2 whole numbers"),
        ("train.ways", [5, 2], "does not rise"),
        ("backbone.hidden", [-1], "1 or more"),
        ("backbone.hidden", [0], "1 or more"),
        ("backbone.channels", 64, "a list of whole numbers"),
        ("train.max_time", "soon", "90s"),
        ("algo.trains_on", [], "episodes"),
        ("algo.phases", {5: {"first_order": 3}}, "true or false"),
        ("name", "../../x", "folder"),
    ],
)
def test_what_no_run_could_mean_is_refused_with_its_key(
    defaults: dict[str, Any], key: str, value: Any, words: str
) -> None:
    section, _, name = key.rpartition(".")
    changed = defaults | ({section: defaults[section] | {name: value}} if section else {key: value})
    with pytest.raises(UserError, match=words) as told:
        check(changed)
    assert str(told.value).startswith(key) and "\n" not in str(told.value)


@pytest.mark.parametrize(("key", "value"), [("seed", 2**63 - 1), ("optim.lr", 3e38), ("train.clip_norm", 1e-30)])
def test_what_is_large_or_small_and_can_be_is_taken(defaults: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    check(defaults | ({section: defaults[section] | {name: value}} if section else {key: value}))


def test_a_part_without_the_rate_that_the_schedule_multiplies_is_refused(defaults: dict[str, Any]) -> None:
    without = {key: value for key, value in defaults["optim"].items() if key != "lr"}
    with pytest.raises(UserError, match=r"optim\.lr is missing"):
        check(defaults | {"optim": without})


def test_what_only_says_how_a_run_is_computed_is_marked(defaults: dict[str, Any]) -> None:
    """The chosen parts are nested sections of the whole config."""
    assert set(marked(COMPUTE_ONLY, defaults, "", settings.Root)) == {
        *("name", "resume", "parallel", "chunk", "compile"),
        *("algo.remat", "data.root", "data.resident"),
    }
    assert list(marked(COMPUTE_ONLY, defaults["train"], "train", settings.Train)) == ["train.log_every"]
    assert list(marked(COMPUTE_ONLY, defaults["val"], "val", settings.Val)) == []
    assert list(marked(COMPUTE_ONLY, defaults["test"], "test", settings.Test)) == ["test.root", "test.only"]
    assert set(marked(COMPUTE_ONLY, defaults["device"], "device", pick)) == {
        f"device.{key}" for key in defaults["device"]
    }


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_that_is_gone_or_no_section_is_named(defaults: dict[str, Any], name: str) -> None:
    check_sections(defaults)
    for wrong in ({}, {name: 3}):
        with pytest.raises(UserError, match=name):
            check_sections({key: value for key, value in defaults.items() if key != name} | wrong)


def test_a_section_that_nobody_reads_is_refused(defaults: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^optm is no section of the config\. Did you mean optim\?"):
        check_sections(defaults | {"optm": {"lr": 5}})


@pytest.mark.parametrize("key", ["seed", "resume", "test.only", "val.patience", "train.max_time"])
def test_no_key_of_the_runs_own_may_be_missing(defaults: dict[str, Any], key: str) -> None:
    section, _, name = key.rpartition(".")
    without = {k: v for k, v in (defaults[section] if section else defaults).items() if k != name}
    with pytest.raises(UserError, match=rf"^{key} is missing"):
        check_sections(defaults | {section: without} if section else without)
