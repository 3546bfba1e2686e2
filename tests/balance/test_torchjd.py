from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.balance.torchjd import TorchJD, weigh
from metarun.types import LOTS, UserError

pytestmark = pytest.mark.usefixtures("jd")


@pytest.mark.parametrize(
    ("name", "options"), [("MGDA", {"max_iters": 20}), ("IMTLG", {}), ("Krum", {"n_byzantine": 2})]
)
def test_the_weights_are_those_of_torchjd_over_their_sum(
    name: str,
    options: dict[str, Any],
    jd: ModuleType,
    weighed: Callable[..., Tensor],
    drawn_slopes: Callable[..., Tensor],
) -> None:
    slopes = drawn_slopes(5)
    theirs = getattr(jd, f"{name}Weighting")(**options)(slopes @ slopes.T)
    assert torch.allclose(weighed(TorchJD(name, options), slopes), theirs / theirs.sum())


def test_an_argument_without_a_default_is_one(jd: ModuleType, drawn_slopes: Callable[..., Tensor]) -> None:
    slopes = drawn_slopes(5)
    balance = TorchJD("Krum", None)
    weights, _ = balance(torch.ones(5), slopes @ slopes.T, balance.init(5, 11))
    assert torch.allclose(weights, jd.KrumWeighting(n_byzantine=1)(slopes @ slopes.T))


def test_a_list_is_a_tensor_there_and_of_absent_heads_nothing_is_told(drawn_slopes: Callable[..., Tensor]) -> None:
    slopes, losses = drawn_slopes(3).abs(), torch.tensor([1.0, torch.nan, 1.0])
    slopes[1] = 0
    balance = TorchJD("AlignedMTL", {"pref_vector": [1.0, 5.0, 2.0]})
    weights, _ = balance(losses, slopes @ slopes.T, balance.init(3, 7))
    two = TorchJD("AlignedMTL", {"pref_vector": [1.0, 2.0]})
    there = slopes[[0, 2]]
    assert torch.allclose(weights[[0, 2]], two(torch.ones(2), there @ there.T, two.init(2, 7))[0]) and weights[1] == 0


def test_what_is_drawn_depends_on_the_lots_alone(drawn_slopes: Callable[..., Tensor]) -> None:
    slopes = drawn_slopes(9, "conflicting") - 0.3
    found = []
    for lot in (0.1, 0.1, 0.7):
        torch.manual_seed(len(found))
        weights, _ = TorchJD("PCGrad", None)(torch.ones(9), slopes @ slopes.T, {LOTS: torch.full((1,), lot)})
        found.append(weights)
    before = torch.get_rng_state()
    assert found[0].equal(found[1]) and not found[0].equal(found[2])
    TorchJD("PCGrad", None)(torch.ones(9), slopes @ slopes.T, {LOTS: torch.zeros(1)})
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("IMTG", {}, "balance.weighting=IMTG is not known to TorchJD. Did you mean IMTLG"),
        ("xyz", {}, "There are: AlignedMTL"),
        ("GradVac", {}, "keeps a state that no checkpoint would hold. Take balance=gradvac."),
        ("PCD", {}, "keeps a state that no checkpoint would hold. Take another: AlignedMTL"),
        ("Mean", {}, "does not weigh by a Gram matrix. Take another: AlignedMTL"),
        ("MGDA", {"max_iter": 3}, "balance.options.max_iter is no argument of MGDAWeighting. Did you mean"),
        ("MGDA", {"max_iters": 0}, "max_iters must be a positive integer"),
        ("MGDA", {"max_iters": "x"}, "balance.options"),
        ("Krum", {"n_byzantine": 7}, "with 4 heads: KrumWeighting says: "),
        ("AlignedMTL", {"pref_vector": [1.0, 2.0]}, "with 4 heads: AlignedMTLWeighting says: "),
    ],
)
def test_what_cannot_be_is_refused_before_training_in_one_line(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as told:
        TorchJD(name, options).init(4, 9)
    assert words in str(told.value) and "\n" not in str(told.value)


def test_without_the_library_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(UserError, match="pip install metarun"):
        TorchJD("MGDA", None)


def test_a_weighting_that_lacks_a_library_of_its_own_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> None:
        """Nothing is installed."""

    monkeypatch.setattr("torchjd._mixins.find_spec", find)
    with pytest.raises(UserError, match=r"balance.weighting=FairGrad: .*numpy.*pip install") as told:
        TorchJD("FairGrad", {"alpha": 0.5})
    assert "\n" not in str(told.value)


def test_it_is_one_operation_for_torch() -> None:
    arguments = torch.eye(3), torch.zeros(3, dtype=torch.bool), torch.zeros(1), "MGDA", "{}"
    torch.library.opcheck(weigh, arguments, test_utils=("test_schema", "test_faketensor"))
