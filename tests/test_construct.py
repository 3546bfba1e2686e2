"""From a section of the config to the object it describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch

from metarun.construct import construct, describe, fits, nearest, prepared, target_of
from metarun.errors import UserError


@dataclass(frozen=True)
class Part:
    size: int
    rate: float
    kind: Literal["mean", "sum"]
    hidden: list[int]
    root: str | None
    net: object

    def __post_init__(self) -> None:
        if self.size > 99:
            raise ValueError("size is beyond 99")


SECTION = {"size": 3, "rate": 0.5, "kind": "sum", "hidden": [1, 2], "root": None}


def test_a_section_and_what_the_run_gives_become_the_object() -> None:
    assert construct(SECTION, "part", Part, net="n") == Part(3, 0.5, "sum", [1, 2], None, "n")


def test_a_prepared_part_waits_for_what_comes_later() -> None:
    assert prepared(SECTION, "part", "net", target=Part)(net="n").net == "n"


def test_a_target_is_found_by_its_name() -> None:
    assert target_of({"_target_": "torch.optim.Adam"}, "optim") is torch.optim.Adam


@pytest.mark.parametrize("name", ["nowhere.Part", "torch.optim.Adamm", "metarun.algos.mamel.MAML", "x y", ""])
def test_a_target_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(UserError, match=r"algo\._target_=.*Mend|algo\._target_=.*mend"):
        target_of({"_target_": name}, "algo")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sise": 3}, "part.sise is no key here. Did you mean part.size?"),
        ({"size": "x"}, "part.size=x does not fit. Give a whole number."),
        ({"size": True}, "part.size=true does not fit. Give a whole number."),
        ({"size": 0.5}, "part.size=0.5 does not fit. Give a whole number."),
        ({"rate": "fast"}, "part.rate=fast does not fit. Give a number."),
        ({"kind": "max"}, "part.kind=max does not fit. Give one of mean, sum."),
        ({"hidden": 4}, "part.hidden=4 does not fit. Give a list of whole numbers."),
        ({"root": 4}, "part.root=4 does not fit. Give a text or null."),
        ({"size": 100}, "part: size is beyond 99"),
    ],
)
def test_every_wrong_key_and_value_is_answered(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as told:
        construct({**SECTION, **change}, "part", Part, net="n")
    assert str(told.value).startswith(words)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match=r"part\.size is missing"):
        construct({k: v for k, v in SECTION.items() if k != "size"}, "part", Part, net="n")


@pytest.mark.parametrize(
    ("value", "hint", "fit"),
    [
        (1, float, True),
        (1, bool, False),
        (None, int | None, True),
        ("x", float | torch.Tensor, False),
        ([0.9, 0.999], tuple[float, float], True),
        (0.9, tuple[float, float], False),
        ("ab", Sequence[str], False),
        ([1, "a"], list[int], False),
        (True, Literal[1], False),
        ({"a": 1}, Any, True),
    ],
)
def test_values_fit_type_hints_as_yaml_means_them(value: Any, hint: Any, fit: bool) -> None:
    assert fits(value, hint) is fit


def test_what_yaml_cannot_express_is_not_asked_for() -> None:
    assert describe(float | torch.Tensor) == "a number"


def test_the_nearest_names_come_first_and_all_names_where_none_is_near() -> None:
    assert nearest("mamel", ["maml", "reptile"]) == " Did you mean maml?"
    assert nearest("xyz", ["maml", "reptile"]) == " There are: maml, reptile."
    assert nearest("xyz", []) == " There are none."
