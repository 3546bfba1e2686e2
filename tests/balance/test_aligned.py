from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from metarun.balance.aligned import Aligned

Weighed = Callable[..., Tensor]


def test_the_weights_are_torchjds(slopes: Tensor, weighed: Weighed, jd: ModuleType) -> None:
    assert torch.allclose(weighed(Aligned(), slopes), jd.AlignedMTLWeighting()(slopes @ slopes.T), atol=1e-7)


def test_the_aligned_slopes_have_condition_number_one(weighed: Weighed, drawn_slopes: Callable[..., Tensor]) -> None:
    """The step is their mean, and so is that of slopes which differ from these by their lengths and angles alone."""
    for kind in ("random", "conflicting", "parallel"):
        slopes = drawn_slopes(5, kind)
        left, sizes, right = torch.linalg.svd(slopes, full_matrices=False)
        aligned = sizes.min() * left @ right
        assert torch.allclose(torch.linalg.svdvals(aligned), sizes.min())
        assert torch.allclose(weighed(Aligned(), slopes) @ slopes, aligned.mean(0), atol=1e-9)


def test_orthogonal_slopes_are_cut_to_the_shortest(weighed: Weighed) -> None:
    lengths = torch.tensor([3.0, 2.0, 6.0], dtype=torch.float64)
    assert torch.allclose(weighed(Aligned(), lengths.diag()), 2 / lengths / 3)
