from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metarun.balance.constant import Constant
from metarun.types import UserError


def weights(balance: Constant, *losses: float) -> Tensor:
    return balance(torch.tensor(losses), None, balance.init(len(losses), 6))[0]


def test_the_weights_are_those_given_over_their_sum() -> None:
    assert torch.allclose(weights(Constant([1, 0, 3]), 5.0, 1.0, 2.0), torch.tensor([0.25, 0.0, 0.75]))


def test_those_that_are_there_share_the_weight_of_one_that_is_not() -> None:
    assert torch.allclose(weights(Constant([1, 4, 3]), 5.0, math.nan, 2.0), torch.tensor([0.25, 0.0, 0.75]))


def test_without_any_given_all_are_the_same() -> None:
    assert weights(Constant(None), 5.0, 1.0).equal(torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(
    ("given", "words"), [([1], "1 numbers for 2"), ([1, -1], "0 or more"), ([0, 0], "sum to more")]
)
def test_what_cannot_weigh_the_heads_is_refused_in_one_line(given: list[float], words: str) -> None:
    with pytest.raises(UserError, match=words) as told:
        Constant(given).init(2, 6)
    assert str(told.value).startswith(f"balance.weights={given}") and "\n" not in str(told.value)


def test_the_weighed_loss_is_torchjds_over_the_sum(scalarization: object) -> None:
    losses, given = torch.tensor([5.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 5.0])
    theirs: Callable[[Tensor], Tensor] = scalarization.Constant(given)  # type: ignore[attr-defined]
    assert torch.allclose(weights(Constant(given.tolist()), *losses.tolist()) @ losses, theirs(losses) / 8)
