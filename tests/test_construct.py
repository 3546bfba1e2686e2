"""From a section of the config to the object it describes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Protocol

import pytest
import torch

from metarun.bounds import AtLeast, Count, FileName, Positive, Rate, Seed, Share
from metarun.construct import (
    COMPUTE_ONLY,
    PROTOCOL,
    check,
    construct,
    describe,
    fits,
    marked,
    nearest,
    prepared,
    target_of,
)
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


class Rule(Protocol):
    def __call__(self, step: int) -> float: ...


@dataclass(frozen=True)
class Halving:
    start: Annotated[Rate, PROTOCOL]
    fast: Annotated[bool, COMPUTE_ONLY]

    def __call__(self, step: int) -> float:
        return self.start / 2**step


@dataclass(frozen=True)
class Whole:
    """Holds other parts."""

    rule: float | Rule
    rules: Sequence[Rule]
    base: Callable[..., Any]
    extra: dict[str, Any]
    most: Annotated[Count | None, COMPUTE_ONLY]


HALVING = {"_target_": f"{__name__}.Halving", "start": 1.0, "fast": True}
ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "betas": [0.5, 0.9]}
WHOLE = {"rule": HALVING, "rules": [HALVING], "base": ADAM, "extra": {"deep": [HALVING]}, "most": None}

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
        ([0.9], tuple[float, float], False),
        ([0.9, "x"], tuple[float, float], False),
        ([1, 2, 3], tuple[int, ...], True),
        (3, Callable[[int], int], False),
        (abs, Callable[[int], int], True),
        (abs, float | Rule, True),
        ("x", Rule, False),
        (1, Annotated[float, AtLeast(0)], True),
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


def test_nested_sections_are_built_wherever_they_stand() -> None:
    whole = construct(WHOLE, "whole", Whole)
    assert whole.rule == whole.rules[0] == whole.extra["deep"][0] == Halving(1.0, True)


def test_a_nested_partial_waits_for_the_rest_of_its_arguments() -> None:
    base = construct(WHOLE, "whole", Whole).base
    assert isinstance(base, partial)
    assert list(base([torch.zeros(1)], lr=0.25).defaults["betas"]) == [0.5, 0.9]


def test_a_partial_section_keeps_what_it_is_given() -> None:
    half = construct({"start": 1.0, "_partial_": True}, "rule", Halving)
    assert half(fast=False) == Halving(1.0, False)


@pytest.mark.parametrize("answer", [check, construct])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rule": {**HALVING, "start": -1}}, "whole.rule.start=-1 is too small. Give 0 or more."),
        ({"rule": {**HALVING, "end": 0}}, "whole.rule.end is no key here. There are: fast, start."),
        ({"rules": [HALVING, {**HALVING, "start": "x"}]}, "whole.rules.1.start=x does not fit. Give a number."),
        ({"extra": {"deep": [{**HALVING, "start": "x"}]}}, "whole.extra.deep.0.start=x does not fit."),
        ({"base": {**ADAM, "lrr": 1}}, "whole.base.lrr is no key here. Did you mean whole.base.lr?"),
        ({"base": {**ADAM, "eps": "x"}}, "whole.base.eps=x does not fit. Give a number."),
        ({"base": {**ADAM, "_target_": "torch.optim.Adamm"}}, "whole.base._target_=torch.optim.Adamm cannot be"),
        ({"base": 3}, "whole.base=3 does not fit. Give a section with a _target_."),
        ({"rules": [3]}, "whole.rules=[3] does not fit. Give a list."),
        ({"rule": "x"}, "whole.rule=x does not fit. Give a number."),
        ({"most": 0}, "whole.most=0 is too small. Give 1 or more."),
    ],
)
def test_a_mistake_in_a_nested_section_is_named_by_its_path(
    answer: Callable[..., Any], change: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as told:
        answer({**WHOLE, **change}, "whole", target=Whole)
    assert str(told.value).startswith(words)


def test_what_a_nested_section_builds_has_to_fit() -> None:
    section = {**SECTION, "size": HALVING}
    check(section, "part", Part)
    with pytest.raises(UserError, match=r"^part\.size=.*Halving does not fit\. Give a whole number\.$"):
        construct(section, "part", Part, net="n")


def test_a_nested_section_that_lacks_a_key_is_named_only_where_it_is_built_whole() -> None:
    short = {"_target_": HALVING["_target_"], "start": 1.0}
    with pytest.raises(UserError, match=r"^whole\.rule\.fast is missing"):
        construct({**WHOLE, "rule": short}, "whole", Whole)
    construct({**WHOLE, "rule": {**short, "_partial_": True}}, "whole", Whole)


def test_a_value_that_a_nested_target_refuses_is_told_with_its_path() -> None:
    wrong = {**WHOLE, "rule": {"_target_": "fractions.Fraction", "numerator": "x/y", "denominator": None}}
    with pytest.raises(UserError, match=r"^whole\.rule: Invalid literal"):
        construct(wrong, "whole", Whole)


def test_keys_marked_compute_only_are_found_at_any_depth() -> None:
    assert list(marked(COMPUTE_ONLY, WHOLE, "whole", Whole)) == [
        "whole.rule.fast",
        "whole.rules.0.fast",
        "whole.extra.deep.0.fast",
        "whole.most",
    ]


def test_keys_that_carry_another_mark_are_found_with_their_values() -> None:
    assert marked(PROTOCOL, WHOLE, "whole", Whole) == {
        "whole.rule.start": 1.0,
        "whole.rules.0.start": 1.0,
        "whole.extra.deep.0.start": 1.0,
    }


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        (0, Count, "=0 is too small. Give 1 or more."),
        (0, Count | None, "=0 is too small. Give 1 or more."),
        (None, Count | None, ""),
        (0, Literal["auto"] | Count, "=0 is too small. Give 1 or more."),
        (0, Count | Sequence[Count], "=0 is too small. Give 1 or more."),
        ([1, 0], Count | Sequence[Count], "=[1, 0]: 0 is too small. Give 1 or more."),
        ([2, 1], Sequence[Annotated[int, AtLeast(2)]], "=[2, 1]: 1 is too small. Give 2 or more."),
        ([0.5, 1], tuple[Share, Share], "=[0.5, 1]: 1 is too large. Give 0 or more, but less than 1."),
        (-0.1, Share, "=-0.1 is too small. Give 0 or more, but less than 1."),
        (5, Annotated[int, AtLeast(0)] | Annotated[int, AtLeast(9)], ""),
        (float("nan"), float, "=nan is not finite. Give a number."),
        (float("inf"), Rate | None, "=inf is not finite. Give a number."),
        (float("nan"), Any, ""),
        (2**63 - 1, int, ""),
        (2**63, int, f"={2**63} is too large for 64 bits. Give a number of fewer digits."),
        (-(2**63) - 1, int, f"={-(2**63) - 1} is too small for 64 bits. Give a number of fewer digits."),
        (10**400, float, f"=1{'0' * 199}... is too large for 64 bits. Give a number of fewer digits."),
        (2**63 - 1, Seed, ""),
        (2**64, Seed, f"={2**64} is too large for 64 bits. Give a number of fewer digits."),
        (3.4e38, float, ""),
        (1e300, Rate, "=1e+300 is too large for a 32-bit number. Give one between -3.4e38 and 3.4e38."),
        (-1e39, float, "=-1e+39 is too large for a 32-bit number. Give one between -3.4e38 and 3.4e38."),
        (1e-50, Rate, "=1e-50 is too near to 0 for a 32-bit number. Give 0, or 1.2e-38 or more."),
        (
            [0.9, 1e39],
            tuple[float, float | torch.Tensor],
            "=[0.9, 1e+39]: 1e+39 is too large for a 32-bit number. Give one between -3.4e38 and 3.4e38.",
        ),
        (0.0, Positive, "=0.0 is too small. Give more than 0."),
        (0, Positive | None, "=0 is too small. Give more than 0."),
        (1e-9, Positive, ""),
        (None, Annotated[int | None, AtLeast(1)], ""),
        ("a/b", Annotated[str, FileName()], "=a/b cannot be a part of a folder's name. Leave out every /."),
        ("é" * 51, Annotated[str, FileName()], f"={'é' * 51} is too long. Give at most 100 letters."),
        ("é" * 50, Annotated[str, FileName()], ""),
    ],
)
def test_bounds_hold_wherever_in_an_annotation_they_stand(value: Any, hint: Any, words: str) -> None:
    def part(key: Any) -> None: ...

    part.__annotations__["key"] = hint
    if not words:
        check({"key": value}, "part", part)
        return
    with pytest.raises(UserError) as told:
        check({"key": value}, "part", part)
    assert str(told.value) == f"part.key{words}"
