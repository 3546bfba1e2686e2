from __future__ import annotations

import pytest
import torch

from benchmarks.convolution import FILTERS, FORMS, one_by_one


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("channels", "side"), [(1, 9), (3, 8)])
def test_every_form_is_the_same_convolution(name: str, channels: int, side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, channels, side, side, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, FILTERS, channels, 3, 3, generator=generator, dtype=torch.float64)
    assert torch.allclose(FORMS[name](x, weight), one_by_one(x, weight), atol=1e-12)
