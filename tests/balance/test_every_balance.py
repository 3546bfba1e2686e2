"""What holds of every balance in conf/balance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from metarun.balance.torchjd import TorchJD
from metarun.cli import CONF
from metarun.construct import construct
from metarun.tracking import checkpoint
from metarun.types import LOTS, MEMORY, NOW, Balance, Params, UserError, learned, memory

TASKS, SIZE = 4, 6


@pytest.fixture(params=sorted(path.stem for path in (CONF / "balance").glob("*.yaml")))
def balance(request: pytest.FixtureRequest) -> Balance:
    try:
        return construct(yaml.safe_load((CONF / "balance" / f"{request.param}.yaml").read_text()), "balance")
    except UserError as error:
        pytest.skip(str(error))  # an extra is not installed


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def told(balance: Balance, tasks: int, seed: int = 0) -> Params:
    """What it keeps, with the lots of a step."""
    kept = balance.init(tasks, SIZE)
    if LOTS in kept:
        kept[LOTS] = torch.rand(kept[LOTS].shape, generator=torch.Generator().manual_seed(seed))
    return kept


def asked(balance: Balance, losses: Tensor, slopes: Tensor, kept: Params) -> Any:
    shown = {"losses": None, "gram": slopes @ slopes.T, "features": slopes @ slopes.T, "slopes": slopes}
    return balance(losses, shown[balance.needs], kept)


def double(tree: Params) -> Params:
    return {name: p.double() for name, p in tree.items()}


def moved(kept: Params, entries: Params) -> Params:
    """What is kept after a step: what was learned has gone down its slope."""
    return {**kept, **memory(entries), **{name: kept[name] - slope for name, slope in learned(entries).items()}}


def course(
    balance: Balance, steps: int, tasks: int = TASKS, start: int = 0, kept: Params | None = None
) -> tuple[list[Tensor], Params]:
    """The weights of the steps from `start` on, of random losses and slopes, and what is kept in the end."""
    kept, found = told(balance, tasks) if kept is None else kept, []
    for step in range(start, steps):
        lots = {name: p for name, p in told(balance, tasks, step + 1).items() if name == LOTS}
        weights, entries = asked(
            balance, drawn(tasks, seed=step).exp(), drawn(tasks, SIZE, seed=step), {**kept, **lots}
        )
        kept = moved(kept, entries)
        found.append(weights)
    return found, kept


def test_weights_are_finite_from_the_first_step_on(balance: Balance) -> None:
    for tasks in (1, TASKS):
        for weights in course(balance, 5, tasks)[0]:
            assert weights.shape in ((tasks,), (tasks, SIZE)) and weights.isfinite().all() and weights.any()


def test_weights_are_finite_where_slopes_or_losses_vanish(balance: Balance) -> None:
    losses, slopes = drawn(TASKS).exp(), drawn(TASKS, SIZE)
    losses[1], slopes[1] = 0, 0
    for some in (slopes, torch.zeros(TASKS, SIZE)):
        weights, entries = asked(balance, losses, some, told(balance, TASKS))
        assert weights.isfinite().all()
        assert asked(balance, losses, some, moved(told(balance, TASKS), entries))[0].isfinite().all()


def test_it_goes_on_bit_for_bit_from_what_was_saved(balance: Balance, tmp_path: Path) -> None:
    whole, _ = course(balance, 6)
    for cut in (1, 3):
        _, kept = course(balance, cut)
        checkpoint.save(tmp_path / "kept.pt", kept)
        rest, _ = course(balance, 6, start=cut, kept=checkpoint.load(tmp_path / "kept.pt"))
        assert all(one.equal(other) for one, other in zip(rest, whole[cut:], strict=True))


def test_weights_are_finite_whatever_the_slopes_are(balance: Balance) -> None:
    """In single precision: more of them than numbers, opposed, nearly the same, and of sizes far apart."""
    tasks = 12
    slopes = drawn(tasks, SIZE)
    cases = {
        "dependent": slopes,
        "opposed": torch.cat([slopes[:6], -slopes[:6]]),
        "parallel": slopes[:1] + 1e-4 * slopes,
        "far apart": slopes * torch.logspace(-8, 8, tasks)[:, None],
        "tiny": slopes * 1e-16,
        "huge": slopes * 1e16,
    }
    for name, some in cases.items():
        weights, entries = asked(balance, drawn(tasks).exp(), some, told(balance, tasks))
        assert weights.isfinite().all(), name
        assert all(p.isfinite().all() for p in learned(entries).values()), name


@pytest.mark.parametrize("tasks", [1, TASKS, 32])
def test_objectives_that_are_all_the_same_take_the_step_of_one(balance: Balance, tasks: int) -> None:
    slopes = drawn(1, SIZE).expand(tasks, SIZE)
    weights, _ = asked(balance, torch.full((tasks,), 2.0), slopes, told(balance, tasks))
    assert torch.allclose(weights.sum(0), torch.ones(()), atol=1e-6)


def test_an_objective_that_is_absent_changes_nothing_for_the_others(balance: Balance) -> None:
    """NaN as its loss and zero as its slope; told in the order that the others have without it."""
    losses, slopes = drawn(TASKS).exp(), drawn(TASKS, SIZE)
    kept = told(balance, TASKS)
    there = [0, 2, 3]
    fewer = {name: _part(p, there) for name, p in kept.items()}
    expected, _ = asked(balance, losses[there], slopes[there], fewer)
    losses[1], slopes[1] = math.nan, 0
    weights, entries = asked(balance, losses, slopes, kept)
    assert torch.allclose(weights[there], expected, atol=1e-6)
    again, _ = asked(balance, drawn(TASKS, seed=1).exp(), drawn(TASKS, SIZE, seed=1), moved(kept, entries))
    assert again.isfinite().all()


def _part(p: Tensor, there: list[int]) -> Tensor:
    """Of each axis that has an entry for each objective, those that are there."""
    for axis in (axis for axis, size in enumerate(p.shape) if size == TASKS):
        p = p.index_select(axis, torch.tensor(there))
    return p


def test_what_it_keeps_has_names_of_its_own_and_stays_of_one_shape(balance: Balance) -> None:
    kept = told(balance, TASKS)
    before = {name: p.clone() for name, p in kept.items()}
    _, entries = asked(balance, drawn(TASKS).exp(), drawn(TASKS, SIZE), kept)
    assert all(p.equal(kept[name]) or p.isnan().any() for name, p in before.items())  # no input is changed
    assert all(name.startswith((MEMORY, NOW)) or name in entries for name in kept)
    assert entries.keys() <= kept.keys() and not any(name.startswith(NOW) for name in entries)
    assert all(p.shape == kept[name].shape and p.dtype == kept[name].dtype for name, p in entries.items())


def test_in_double_precision_it_is_the_same(balance: Balance) -> None:
    losses, slopes, kept = drawn(TASKS).exp(), drawn(TASKS, SIZE), told(balance, TASKS)
    single, _ = asked(balance, losses, slopes, kept)
    weights, entries = asked(balance, losses.double(), slopes.double(), double(kept))
    assert weights.dtype == torch.float64 and torch.allclose(weights, single.double(), atol=1e-5)
    assert all(p.dtype == torch.float64 for p in entries.values())


def test_mapped_over_several_problems_it_is_what_it_is_on_each(balance: Balance) -> None:
    losses, slopes = drawn(3, TASKS).exp(), drawn(3, TASKS, SIZE)
    kept = {n: torch.stack([told(balance, TASKS, seed)[n] for seed in range(3)]) for n in told(balance, TASKS)}
    together, _ = torch.vmap(lambda *parts: asked(balance, *parts))(losses, slopes, kept)
    for i in range(3):
        alone, _ = asked(balance, losses[i], slopes[i], {name: p[i] for name, p in kept.items()})
        assert torch.allclose(together[i], alone, atol=1e-5)


def test_traced_it_computes_the_same_from_other_numbers(balance: Balance) -> None:
    """Of a value that tracing had frozen into the program the second call would know nothing."""
    kept = told(balance, TASKS)
    program = make_fx(lambda *parts: asked(balance, *parts))(drawn(TASKS).exp(), drawn(TASKS, SIZE), kept)
    _, entries = asked(balance, drawn(TASKS).exp(), drawn(TASKS, SIZE), kept)
    later = drawn(TASKS, seed=1).exp(), drawn(TASKS, SIZE, seed=1), {**moved(kept, entries), **_other_lots(kept)}
    found, expected = program(*later), asked(balance, *later)
    assert torch.allclose(found[0], expected[0])
    assert all(torch.allclose(found[1][name], p, equal_nan=True) for name, p in expected[1].items())


def _other_lots(kept: Params) -> Params:
    return {LOTS: kept[LOTS].flip(-1)} if LOTS in kept else {}


def test_it_runs_on_the_meta_device(balance: Balance) -> None:
    """Where a tensor left on the CPU, and a fetch from the device, are errors."""
    kept = {name: p.to("meta") for name, p in told(balance, TASKS).items()}
    losses, slopes = torch.empty(TASKS, device="meta"), torch.empty(TASKS, SIZE, device="meta")
    weights, entries = asked(balance, losses, slopes, kept)
    assert weights.is_meta and all(p.is_meta for p in entries.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_it_waits_for_no_gpu(balance: Balance) -> None:
    if isinstance(balance, TorchJD):
        pytest.skip("TorchJD's computes on the CPU, and says so")
    losses, slopes = drawn(32).exp().cuda(), drawn(32, SIZE).cuda()
    kept = {name: p.cuda() for name, p in told(balance, 32).items()}
    asked(balance, losses, slopes, kept)  # libraries are loaded by the first call
    torch.cuda.set_sync_debug_mode("error")
    try:
        asked(balance, losses, slopes, kept)
    finally:
        torch.cuda.set_sync_debug_mode("default")
