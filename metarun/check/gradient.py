"""Whether the slopes that an algorithm returns are those of its loss, by finite differences in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves, tree_map

from metarun.check.outcome import Outcome
from metarun.engine.device import seed_draws
from metarun.engine.mapping import Parallel
from metarun.types import LOTS, STEP, Algorithm, FirstOrder, Params, learned

WHAT = "meta-gradient"
REACHES = (1e-5, 1e-7)  # how far to go to both sides; the shorter where the longer met a kink
TOLERANCE = 1e-4  # of a derivative
ABSOLUTE = 1e-7  # of the length of the whole slope
MOST = 24  # groups of entries, each with a direction of its own
PROBES = 24  # random directions by which the length of a slope is estimated
CPU = torch.device("cpu")

Value = Callable[[Params], float]


class Along(NamedTuple):
    """The derivative along a direction that moves some entries, as measured and as told."""

    entries: str
    measured: float
    told: float

    @property
    def apart(self) -> float:
        """Relative to the larger one."""
        return abs(self.measured - self.told) / max(abs(self.measured), abs(self.told), 1e-300)


def meta_gradient(algo: Algorithm, params: Params, sample: Any, step: int = 0) -> Outcome:
    """Compares them along a random direction of every learned entry, at θ in float64, at that step of a run."""
    params, sample = told(_double(params), step), _double(sample)
    parallel = Parallel("vmap", len(tree_leaves(sample)[0]))

    def grad(params: Params) -> tuple[Params, float]:
        seed_draws(CPU, 0)
        slope, metrics = algo.meta_grad(params, sample, parallel)
        return learned(slope), float(metrics["loss"])

    def value(params: Params) -> float:
        return grad(params)[1]

    slope, loss = grad(params)
    length = _length(slope)
    if not math.isfinite(loss) or not math.isfinite(length):
        return Outcome(WHAT, False, "the loss or its slope is no number on a small smooth copy of the problem")
    if isinstance(algo, FirstOrder) and algo.first_order:
        return _direction(value, params, slope, length)
    return _derivatives(value, params, slope, length)


def told(params: Params, step: int) -> Params:
    """θ with the entries that the loop writes, once for all that follows."""
    lots = torch.Generator().manual_seed(step)
    new = {name: torch.full_like(p, step) for name, p in params.items() if name == STEP}
    return {
        **params,
        **new,
        **{n: torch.empty_like(p).uniform_(generator=lots) for n, p in params.items() if n == LOTS},
    }


def _derivatives(value: Value, params: Params, slope: Params, length: float) -> Outcome:
    """Of an algorithm whose slopes are to be exact."""
    dice = torch.Generator().manual_seed(0)
    found = [_along(value, params, slope, names, dice, length) for names in groups([*slope])]
    wrong = [a for a in found if not _agrees(a, length)]
    if not wrong:
        worst = max((a.apart for a in found if abs(a.told) > ABSOLUTE * length), default=0.0)
        return Outcome(WHAT, True, f"that of finite differences to {worst:.0e}, in each of {len(slope)} entries")
    first = max(wrong, key=lambda a: abs(a.measured - a.told))
    more = f", and {len(wrong) - 1} other entries differ" if len(wrong) > 1 else ""
    return Outcome(
        WHAT,
        False,
        f"along {first.entries} the loss changes by {first.measured:.4g}, and meta_grad says {first.told:.4g}{more}. "
        "If it leaves something out by design, let its class say so: first_order = True",
    )


def _direction(value: Value, params: Params, slope: Params, length: float) -> Outcome:
    """Of an algorithm whose slopes are approximations: whether they lead upwards, and how straight.

    The part of the true slope along the told one is measured; the length of the rest is estimated by random directions.
    """
    if not length:
        return Outcome(WHAT, False, "is zero in every entry")
    dice = torch.Generator().manual_seed(0)
    unit = {name: g / length for name, g in slope.items()}
    upwards = _derivative(value, params, unit, REACHES[0])
    rest = []
    for _ in range(PROBES):
        probe = {name: torch.randn(g.shape, generator=dice, dtype=g.dtype) for name, g in slope.items()}
        along = sum(float((probe[name] * u).sum()) for name, u in unit.items())
        rest.append(_derivative(value, params, {n: p - along * unit[n] for n, p in probe.items()}, REACHES[0]) ** 2)
    cosine = upwards / max(math.hypot(upwards, math.sqrt(sum(rest) / PROBES)), 1e-300)
    return Outcome(WHAT, cosine > 0, f"approximate by design: its cosine with the slope of the loss is {cosine:.2f}")


def groups(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """The names one by one, or several at a time where they are many."""
    size = -(-len(names) // MOST)
    for start in range(0, len(names), size):
        yield names[start : start + size]


def _along(
    value: Value, params: Params, slope: Params, names: Sequence[str], dice: torch.Generator, length: float
) -> Along:
    """The derivative along a random direction of the named entries; by the reach that fits better."""
    way = {name: torch.randn(params[name].shape, generator=dice, dtype=torch.float64) for name in names}
    by_slope = sum(float((slope[name] * w).sum()) for name, w in way.items())
    words = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
    found = []
    for reach in REACHES:
        found.append(Along(words, _derivative(value, params, way, reach), by_slope))
        if _agrees(found[-1], length):
            break
    return min(found, key=lambda a: a.apart)


def _agrees(a: Along, length: float) -> bool:
    return abs(a.measured - a.told) <= TOLERANCE * max(abs(a.measured), abs(a.told)) + ABSOLUTE * length


def _derivative(value: Value, params: Params, way: Params, reach: float) -> float:
    """Central difference, so far to both sides."""
    share = reach / max(_length(way), 1e-300)
    ahead, behind = (value({**params, **{n: params[n] + side * w for n, w in way.items()}}) for side in (share, -share))
    return (ahead - behind) / (2 * share)


def _length(tree: Params) -> float:
    return math.sqrt(sum(float(t.square().sum()) for t in tree.values()))


def _double(tree: Any) -> Any:
    return tree_map(lambda t: t.cpu().double() if t.is_floating_point() else t.cpu(), tree)
