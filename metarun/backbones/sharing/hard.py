"""Hard parameter sharing: one trunk for all heads."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Hard(nn.Module):
    """f_h(x) = f(x): what there is without `sharing`, under a name that a sweep can list beside the others.

    Caruana: Multitask Learning. Machine Learning 28, 1997.
    """

    def __init__(self, make_trunk: Callable[[], nn.Module], heads: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.heads = heads
        self.trunk = make_trunk()
        self.features = int(self.trunk.features)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x)[:, None].expand(-1, self.heads, -1)
