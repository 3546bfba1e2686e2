from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from metarun.balance.mgda import MGDA
from metarun.balance.mgda_ub import MGDAUB


def test_of_the_slopes_by_the_features_it_makes_what_mgda_makes_of_those_by_the_entries(
    slopes: Tensor, weighed: Callable[..., Tensor]
) -> None:
    assert MGDAUB.needs == "features" and MGDA.needs == "gram"
    assert weighed(MGDAUB(), slopes).equal(weighed(MGDA(), slopes))
