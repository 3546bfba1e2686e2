from __future__ import annotations

import torch
from torch import Tensor

from metarun.balance.rlw import RLW
from metarun.types import LOTS


def weights(lots: Tensor) -> Tensor:
    return RLW()(torch.ones(lots.shape[-1]), None, {LOTS: lots})[0]


def test_the_logarithms_of_the_weights_are_normal_up_to_one_shift() -> None:
    """Differences of two standard normal numbers have variance 2 and excess kurtosis 0."""
    lots = torch.rand(40000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    differences = torch.vmap(weights)(lots).log().diff()[:, 0]
    assert abs(differences.mean()) < 0.03 and abs(differences.var() - 2) < 0.06
    assert abs(((differences / differences.std()) ** 4).mean() - 3) < 0.15


def test_no_lot_makes_a_weight_that_is_no_number() -> None:
    found = weights(torch.tensor([0.0, 0.0, 0.5, 1 - 2**-24]))
    assert found.isfinite().all() and found[2] > 0 and found.argmax() == 3
    assert weights(torch.zeros(3)).equal(torch.full((3,), 1 / 3))


def test_other_lots_make_other_weights() -> None:
    assert not weights(torch.tensor([0.2, 0.6])).equal(weights(torch.tensor([0.6, 0.2])))
