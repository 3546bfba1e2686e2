from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metarun.balance.famo import FAMO, LOGITS, LOGS
from metarun.tracking import checkpoint
from metarun.types import Params

RATE, DECAY = 0.1, 0.01
FALLING = FAMO(RATE, DECAY, 0.0)


def course(losses: list[list[float]], famo: FAMO = FALLING, kept: Params | None = None) -> tuple[list[Tensor], Params]:
    """The weights after each row of losses, in float64, and what is kept in the end."""
    kept = {name: p.double() for name, p in (kept or famo.init(len(losses[0]), 0)).items()}
    found = []
    for row in torch.tensor(losses, dtype=torch.float64):
        weights, entries = famo(row, None, kept)
        kept = {**kept, **entries}
        found.append(weights)
    return found, kept


def drawn(steps: int, tasks: int = 3) -> list[list[float]]:
    return (torch.rand(steps, tasks, generator=torch.Generator().manual_seed(0)) + 0.1).tolist()


def test_at_first_the_slopes_of_the_logarithms_count_equally() -> None:
    """w = (1/L) / Σ 1/L, with nothing known of the past."""
    (weights,), kept = course([[1.0, 2.0, 4.0]])
    assert torch.allclose(weights, torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64) / 7)
    assert all(entry.isfinite().all() for entry in kept.values()) and not kept[LOGITS].any()


def test_losses_that_stay_keep_their_weights() -> None:
    weights, _ = course([[1.0, 2.0, 4.0]] * 5)
    assert all(torch.allclose(one, weights[0]) for one in weights)


def test_losses_that_fall_at_one_rate_keep_their_logits() -> None:
    _, kept = course([[0.9**step, 5 * 0.9**step] for step in range(6)], FAMO(RATE, 0.0, 0.0))
    assert kept[LOGITS].abs().max() < 1e-6


def test_the_loss_that_falls_slower_gains_weight() -> None:
    """Also beyond what its size explains: the share of its logarithm grows."""
    losses = [[0.9**step, 0.5**step] for step in range(6)]
    weights, kept = course(losses)
    shares = [(w * torch.tensor(row))[0] / (w * torch.tensor(row)).sum() for w, row in zip(weights, losses)]
    assert all(later > earlier for earlier, later in pairwise(shares))
    assert kept[LOGITS][0] > 0 > kept[LOGITS][1]


@pytest.mark.parametrize("decay", [0.0, DECAY, 1.0])
def test_the_logits_take_the_steps_of_torchs_adam(decay: float) -> None:
    """On Σ δ softmax(ξ), δ being how far each logarithm fell; with weight decay."""
    losses = drawn(8)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=RATE, weight_decay=decay)
    logs = torch.tensor(losses, dtype=torch.float64).log()
    for fallen in logs[:-1] - logs[1:]:
        (logits.grad,) = torch.autograd.grad(logits.softmax(0) @ fallen, logits)
        adam.step()
    weights, kept = course(losses, FAMO(RATE, decay, 0.0))
    assert torch.allclose(kept[LOGITS], logits.detach(), rtol=1e-9)
    expected = logits.detach().softmax(0) / logs[-1].exp()
    assert torch.allclose(weights[-1], expected / expected.sum(), rtol=1e-9)


def test_the_floor_is_taken_off_every_loss() -> None:
    above, _ = course(drawn(5))
    raised, _ = course([[loss + 2 for loss in row] for row in drawn(5)], FAMO(RATE, DECAY, 2.0))
    assert all(torch.allclose(one, other) for one, other in zip(raised, above))


@pytest.mark.parametrize("loss", [0.0, -1.0])
def test_a_loss_at_its_floor_leaves_all_weights_finite(loss: float) -> None:
    weights, kept = course([[1.0, loss], [loss, 1.0], [1.0, loss]])
    assert all(w.isfinite().all() for w in [*weights, *kept.values()])


def test_a_loss_that_is_absent_is_compared_with_its_last_one_when_it_returns() -> None:
    """Meanwhile its logit does not move, nor do the others' for its sake."""
    nan = math.nan
    famo = FAMO(RATE, 0.0, 0.0)
    weights, kept = course([[1.0, 1.0, 1.0], [0.9, 0.5, nan]], famo)
    assert kept[LOGS][2] == 0 and kept[LOGITS][2] == 0 and weights[1][:2].sum() == pytest.approx(1)
    _, two = course([[1.0, 1.0], [0.9, 0.5]], famo)
    assert torch.allclose(kept[LOGITS][:2], two[LOGITS])
    _, kept = course([[0.8, 0.4, 0.1]], famo, kept)
    assert kept[LOGITS][2] < 0


def test_it_goes_on_bit_for_bit_from_what_was_saved(tmp_path: Path) -> None:
    losses = drawn(6)
    whole, _ = course(losses)
    for cut in (1, 3):
        _, kept = course(losses[:cut])
        checkpoint.save(tmp_path / "kept.pt", kept)
        rest, _ = course(losses[cut:], kept=checkpoint.load(tmp_path / "kept.pt"))
        assert all(one.equal(other) for one, other in zip(rest, whole[cut:]))
