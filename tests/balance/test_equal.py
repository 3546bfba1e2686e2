from __future__ import annotations

import math

import torch

from metarun.balance.equal import Equal


def test_all_weights_are_one_over_their_number() -> None:
    weights, entries = Equal()(torch.tensor([3.0, 0.0, 1e9, 7.0]), None, {})
    assert weights.equal(torch.full((4,), 0.25)) and entries == Equal().init(4, 6) == {}


def test_those_that_are_there_share_the_weight_of_one_that_is_not() -> None:
    weights, _ = Equal()(torch.tensor([3.0, math.nan, 1.0, 7.0, math.nan]), None, {})
    assert weights[[0, 2, 3]].equal(torch.full((3,), 1 / 3))
