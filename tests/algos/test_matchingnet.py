from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metarun.algos.matchingnet import Cell, MatchingNet
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.losses import judge
from metarun.maths.net import Net
from metarun.types import Batch, Head, Params


def classes(ways: int) -> dict[str, Head]:
    return {"class": Head("class", ways)}


def batch(x: Tensor, y: Tensor | list[int]) -> Batch:
    return Batch(x, {"class": torch.as_tensor(y)})


def scores(algo: Any, params: Params, support: Batch, x: Tensor) -> Tensor:
    (fast,) = algo.adapt(params, support, 0)
    return algo.predict(fast, x)["class"]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.fixture
def plain(linear_net: Net) -> Callable[..., MatchingNet]:
    """plain(scale, full_context, steps): on features that are the inputs themselves, for two classes."""

    def made(scale: float = 1.0, full_context: bool = False, steps: int = 3) -> MatchingNet:
        return MatchingNet(Net.build(linear_net.make_trunk, classes(2), "batch"), scale, full_context, steps)

    return made


def start(algo: MatchingNet) -> Params:
    return {name: p.double() for name, p in algo.init(torch.Generator().manual_seed(0)).items()}


def torchs(cell: Cell, params: Params, name: str, kind: Callable[..., Any]) -> Any:
    """torch's own LSTM with the parameters of a cell: inputs and what was seen have a matrix each there."""
    weight, bias = (params[f"context.{name}.gates.{part}"] for part in ("weight", "bias"))
    width = len(bias) // 4
    own = kind(weight.shape[1] - width, width).double()
    values = (weight[:, :-width], weight[:, -width:], bias, torch.zeros_like(bias))
    for p, value in zip(own.parameters(), values, strict=True):
        p.data = value
    return own


def test_logits_of_three_rows_by_hand(plain: Callable[..., MatchingNet]) -> None:
    """Cosines of (2, 0) with (1, 0), (0, 3) and (−4, 0): 1, 0 and −1; the first and the last are of class 0."""
    algo = plain(scale=2.0)
    support = batch(torch.tensor([[1.0, 0], [0, 3], [-4, 0]], dtype=torch.float64), [0, 1, 0])
    logits = scores(algo, start(algo), support, torch.tensor([[2.0, 0]], dtype=torch.float64))
    measure = torch.tensor([2.0, 0, -2], dtype=torch.float64).softmax(0)
    assert torch.allclose(logits.exp(), torch.stack([measure[0] + measure[2], measure[1]])[None], atol=1e-6)


def test_logits_are_the_logarithms_of_probabilities(case: Callable[..., Any]) -> None:
    found = case("matchingnet", "none")
    support, query = tree_map(lambda t: t[0], found.sample)
    logits = scores(found.algo, found.params, support, query.x)
    assert torch.allclose(logits.exp().sum(1), torch.ones(len(query.x), dtype=torch.float64), atol=1e-12)


def test_rows_in_context_are_those_of_torchs_bidirectional_lstm(plain: Callable[..., MatchingNet]) -> None:
    algo, rows = plain(full_context=True), random(4, 2)
    params, known = start(algo), torch.ones(4, dtype=torch.bool)
    there = torchs(algo.context.module.forwards, params, "forwards", nn.LSTM)  # type: ignore[arg-type]
    back = torchs(algo.context.module.backwards, params, "backwards", nn.LSTM)  # type: ignore[arg-type]
    expected = rows + there(rows)[0] + back(rows.flip(0))[0].flip(0)
    assert torch.allclose(algo.context(params, rows, known), expected, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_queries_in_context_are_those_of_the_papers_equations(steps: int, plain: Callable[..., MatchingNet]) -> None:
    """ĥₖ, cₖ = LSTM(f, [hₖ₋₁, rₖ₋₁], cₖ₋₁), hₖ = ĥₖ + f, rₖ₋₁ = Σ softmax(hₖ₋₁·g_b) g_b, one query at a time. torch's
    cell gives as much as it sees, so r goes in with the inputs."""
    algo, rows, queries = plain(full_context=True, steps=steps), random(4, 2), random(3, 2)
    params, known = start(algo), torch.ones(4, dtype=torch.bool)
    weight, bias = (params[f"context.reading.gates.{part}"] for part in ("weight", "bias"))
    cell = nn.LSTMCell(4, 2).double()
    order = (torch.cat([weight[:, :2], weight[:, 4:]], 1), weight[:, 2:4], bias, torch.zeros_like(bias))
    for p, value in zip(cell.parameters(), order, strict=True):
        p.data = value
    expected = []
    for f in queries:
        h = c = torch.zeros(2, dtype=torch.float64)
        for _ in range(steps):
            r = sum(a * g for a, g in zip((rows @ h).softmax(0), rows))
            new, c = cell(torch.cat([f, r]), (h, c))
            h = new + f
        expected.append(h)
    assert torch.allclose(algo.context(params, rows, known, queries), torch.stack(expected), atol=1e-12)


def test_in_full_context_the_order_of_rows_matters_and_rows_without_a_target_do_not(
    case: Callable[..., Any],
) -> None:
    found = case("matchingnet", "none", full_context=True)
    support, query = tree_map(lambda t: t[0], found.sample)
    one = scores(found.algo, found.params, support, query.x)
    turned = tree_map(lambda t: t.flip(0), support)
    assert not torch.allclose(scores(found.algo, found.params, turned, query.x), one, atol=1e-9)
    for sides in ((3, 0), (0, 3)):
        y = F.pad(support.y["class"], sides, value=-100)
        parts = [query.x[:3], support.x] if sides[0] else [support.x, query.x[:3]]
        padded = scores(found.algo, found.params, batch(torch.cat(parts), y), query.x)
        assert torch.allclose(padded, one, atol=1e-12)


def test_the_context_is_learned_and_a_mapped_step_is_a_loops(
    case: Callable[..., Any], close: Callable[..., bool]
) -> None:
    found = case("matchingnet", "batch", "support", full_context=True)
    (one, scored), (other, _) = (
        found.algo.meta_grad(found.params, found.sample, p) for p in (Parallel("vmap", 6), Parallel("loop", 1))
    )
    assert close(one, other) and scored["loss"].isfinite()
    assert all(slope.any() for name, slope in one.items() if name.startswith(("context.", "log_scale")))


def test_the_tested_learner_is_whole_where_it_is_first_used_beneath_vmap(case: Callable[..., Any]) -> None:
    found = case("matchingnet", "none", full_context=True)
    x, y = found.sample.support.x, found.sample.support.y["class"]
    each = torch.vmap(lambda x, y: scores(found.tested, found.params, batch(x, y), x))(x, y)
    assert torch.allclose(each[0], scores(found.algo, found.params, batch(x[0], y[0]), x[0]), atol=1e-12)


def test_it_is_tested_with_other_ways_than_it_was_trained_with(case: Callable[..., Any]) -> None:
    found = case("matchingnet", "none")
    more = MatchingNet(found.algo.net.testing(classes(5)), scale=1.0, full_context=False, steps=1)
    x = found.sample.support.x[0]
    assert scores(more, found.params, batch(x[:5], torch.arange(5)), x).argmax(-1)[:5].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("full_context", [False, True])
@pytest.mark.parametrize("y", [[0, 0, -100], [-100, -100, -100]], ids=["one class absent", "all absent"])
def test_an_absent_class_is_chosen_for_no_query_and_gives_no_nan(
    y: list[int], full_context: bool, plain: Callable[..., MatchingNet]
) -> None:
    """Though one row has no direction, and one query either."""
    algo = plain(full_context=full_context)
    x = torch.tensor([[5.0, 5], [0, 0], [0, 1]], dtype=torch.float64, requires_grad=True)
    queries = torch.tensor([[0.0, 3], [0, 0]], dtype=torch.float64, requires_grad=True)
    logits = scores(algo, start(algo), batch(x, y), queries)
    loss = judge(classes(2), {"class": logits}, {"class": torch.zeros(2, dtype=torch.long)})[0]
    assert loss.isfinite() and logits.argmax(-1).tolist() == [0, 0]
    assert all(
        slope.isfinite().all()
        for slope in torch.autograd.grad(loss, [x, queries], allow_unused=True)
        if slope is not None
    )


def test_tasks_of_values_are_refused(linear_net: Net) -> None:
    with pytest.raises(UserError, match=r"one head apart.* data=omniglot"):
        MatchingNet(linear_net, scale=1.0, full_context=False, steps=1).init(torch.Generator())
