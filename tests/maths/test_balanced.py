from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.cli import CONF
from metarun.construct import construct
from metarun.engine.mapping import Parallel
from metarun.maths.balanced import Objectives, balanced, kept
from metarun.maths.losses import by_head
from metarun.maths.net import Net
from metarun.types import LOTS, Batch, Head, Params, Score, UserError, learned

BALANCES = sorted(path.stem for path in (CONF / "balance").glob("*.yaml"))
MAPPINGS = [Parallel("loop", 1), *(Parallel("vmap", chunk) for chunk in (1, 3, 4))]
VMAP = Parallel("vmap", 4)
WEIGHTS = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)


@dataclass(frozen=True)
class Given:
    """Weights that are what they are, for whoever asks by `needs`; it keeps what it was shown."""

    weights: Tensor
    needs: str
    seen: list[Any]

    def init(self, tasks: int, size: int) -> Params:
        return {}

    def __call__(self, losses: Tensor, slopes: Tensor | None, kept: Params) -> tuple[Tensor, Params]:
        self.seen[:] = [losses, slopes]
        return self.weights, {"memory.count": kept["memory.count"] + 1}


@pytest.fixture
def mtl(case: Callable[..., Any]) -> Any:
    """Four fixed tasks with a head each, no batch norm: rows may be dealt to tasks as one likes."""
    return case("mtl", "none")


def given(mtl: Any, needs: str, weights: Tensor = WEIGHTS) -> tuple[Any, Params]:
    found = replace(mtl.algo, balance=Given(weights, needs, []))
    return found, {**mtl.params, "memory.count": torch.zeros(())}


def together(batch: Batch) -> Batch:
    """All rows of all tasks as the one batch that all heads share."""
    return Batch(batch.x.flatten(0, 1)[None], {name: y.flatten(0, 1)[None] for name, y in batch.y.items()})


def of_own(algo: Any, batch: Batch) -> tuple[Any, Batch]:
    """The tasks as they are, each with inputs of its own."""
    return algo, batch


def sharing(algo: Any, batch: Batch) -> tuple[Any, Batch]:
    """The same rows as a batch that all heads share."""
    heads = {name: replace(head, alone=False) for name, head in algo.net.heads.items()}
    return replace(algo, net=replace(algo.net, heads=heads, trained=heads)), together(batch)


def without(batch: Batch, head: str) -> Batch:
    """The batch without the task of one head."""
    keep = (batch.y[head] < 0).all(1)
    return tree_map(lambda t: t[keep], batch)


def slopes(mtl: Any, batch: Batch) -> list[Params]:
    """∇L_h for each head, by itself: the mean over the rows that have its target."""
    found = []
    for name in mtl.algo.net.heads:
        leaves = {n: p.clone().requires_grad_() for n, p in learned(mtl.params).items()}
        rows = together(batch)
        score = by_head(mtl.algo.net.heads, mtl.algo.net(leaves, rows.x[0]), {n: y[0] for n, y in rows.y.items()})
        slope = torch.autograd.grad(score.losses[name], list(leaves.values()), allow_unused=True)
        found.append({n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(leaves.items(), slope)})
    return found


def weighed(weights: Tensor, slopes: list[Params]) -> Params:
    return {name: sum(w * slope[name] for w, slope in zip(weights, slopes)) for name in slopes[0]}


@pytest.mark.parametrize("shape", [of_own, sharing])
def test_equal_weights_give_the_slope_of_the_mean_loss(shape: Any, mtl: Any, close: Callable[..., bool]) -> None:
    algo, sample = shape(mtl.algo, mtl.sample)
    found, metrics = algo.meta_grad(mtl.params, sample, VMAP)
    assert close(found, weighed(torch.full((4,), 0.25), slopes(mtl, mtl.sample)), 1e-9)
    assert metrics.keys() == {"loss", "accuracy", *(f"{name}/weight" for name in mtl.algo.net.heads)}


@pytest.mark.parametrize("shape", [of_own, sharing])
@pytest.mark.parametrize("needs", ["losses", "gram", "features", "slopes"])
def test_weights_weigh_the_slopes_of_the_trunk(needs: str, shape: Any, mtl: Any, close: Callable[..., bool]) -> None:
    """Weights of losses every other entry, too; with weights of slopes a head's own gets the plain mean."""
    if needs == "features" and shape is of_own:
        pytest.skip("tasks with inputs of their own share no features")
    algo, params = given(mtl, needs)
    algo, sample = shape(algo, mtl.sample)
    found, _ = algo.meta_grad(params, sample, VMAP)
    each = slopes(mtl, mtl.sample)
    expected, plain = weighed(WEIGHTS, each), weighed(torch.full((4,), 0.25), each)
    heads = {name: (expected if needs == "losses" else plain)[name] for name in plain if name.startswith("head.")}
    assert found.pop("memory.count") == 1
    assert close(found, {**expected, **heads}, 1e-9)


@pytest.mark.parametrize("needs", ["losses", "gram", "features", "slopes"])
def test_a_balance_is_shown_what_it_needs_and_no_graph(needs: str, mtl: Any) -> None:
    algo, params = given(mtl, needs)
    sharer, batch = sharing(algo, mtl.sample)
    sharer.meta_grad(params, batch, VMAP)
    losses, shown = algo.balance.seen
    flat = torch.stack(
        [torch.cat([s[name].flatten() for name in s if name.startswith("trunk.")]) for s in slopes(mtl, mtl.sample)]
    )
    assert not losses.requires_grad and losses.shape == (4,)
    if needs == "losses":
        assert shown is None
    elif needs == "features":
        assert shown.shape == (4, 4) and shown.diagonal().min() > 0
        off = shown - torch.diag(shown.diagonal())
        assert not off.any() and not shown.requires_grad  # no two heads have a row in common
    else:
        assert torch.allclose(shown, flat if needs == "slopes" else flat @ flat.T, atol=1e-12)
        assert not shown.requires_grad


def test_each_entry_of_a_slope_may_have_a_weight_of_its_own(mtl: Any, close: Callable[..., bool]) -> None:
    size = sum(p.numel() for name, p in mtl.params.items() if name.startswith("trunk."))
    each, params = given(mtl, "slopes", WEIGHTS[:, None].expand(4, size))
    whole, _ = given(mtl, "slopes")
    one, other = (algo.meta_grad(params, mtl.sample, VMAP)[0] for algo in (each, whole))
    assert close(one, other, 1e-12)


@pytest.mark.parametrize("needs", ["gram", "slopes"])
def test_cosines_between_heads_and_weights_are_reported(needs: str, mtl: Any) -> None:
    """Those of a head that is not there are no numbers."""
    algo, params = given(mtl, needs)
    _, metrics = algo.meta_grad(params, mtl.sample, VMAP)
    flat = torch.stack(
        [torch.cat([s[name].flatten() for name in s if name.startswith("trunk.")]) for s in slopes(mtl, mtl.sample)]
    )
    expected = torch.nn.functional.cosine_similarity(flat[:, None], flat, dim=-1)
    assert torch.allclose(metrics["cosine"], expected, atol=1e-12)
    assert [float(metrics[f"{name}/weight"]) for name in algo.net.heads] == WEIGHTS.tolist()
    _, metrics = algo.meta_grad(params, without(mtl.sample, "g1"), VMAP)
    there = [0, 2, 3]
    assert torch.allclose(metrics["cosine"][there][:, there], expected[there][:, there], atol=1e-12)
    assert metrics["cosine"][1].isnan().all() and metrics["cosine"][:, 1].isnan().all()


@pytest.mark.parametrize("balance", BALANCES)
def test_with_a_head_for_each_task_one_slope_per_task_is_enough(
    balance: str, case: Callable[..., Any], close: Callable[..., bool]
) -> None:
    found = case("mtl", balance=balance)
    net = found.algo.net
    if found.algo.balance.needs == "features":
        pytest.skip("tasks with inputs of their own share no features")

    def score(params: Params, seen: Tensor, task: Batch) -> Score:
        return by_head(net.heads, net.output(params, seen), task.y)

    params = {**found.params, **drawn_lots(found.params)}
    objectives = Objectives(
        [*net.heads], lambda params, task: net.features(params, task.x), score, net.shared(params), True
    )
    one, other = (
        balanced(found.algo.balance, objectives._replace(alone=alone), params, found.sample, VMAP)
        for alone in (True, False)
    )
    assert close(one[0], other[0], 1e-9) and close(one[1], other[1], 1e-9)


@pytest.mark.parametrize("balance", BALANCES)
def test_every_mapping_gives_the_same(balance: str, case: Callable[..., Any], close: Callable[..., bool]) -> None:
    found = case("mtl", balance=balance)
    params = {**found.params, **drawn_lots(found.params)}
    reference, *others = (found.algo.meta_grad(params, found.sample, parallel) for parallel in MAPPINGS)
    for slope, metrics in others:
        assert close(slope, reference[0], 1e-9) and close(metrics, reference[1], 1e-9)


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("shape", [of_own, sharing])
def test_an_absent_head_has_no_weight_and_the_others_have_its_share(
    shape: Any, balance: str, case: Callable[..., Any], close: Callable[..., bool]
) -> None:
    """Its own entries have slope zero, and the trunk's is that of the three others, whose losses weigh 1 in all."""
    found = case("mtl", "none", balance=balance)
    params = {**found.params, **drawn_lots(found.params)}
    if found.algo.balance.needs == "features" and shape is of_own:
        pytest.skip("tasks with inputs of their own share no features")
    algo, batch = shape(found.algo, without(found.sample, "g1"))
    slope, metrics = algo.meta_grad(params, batch, VMAP)
    assert all(p.isfinite().all() for name, p in learned(slope).items())
    assert not slope["head.weight"][3:6].any() and not slope["head.bias"][3:6].any()
    if balance == "equal":
        each = slopes(found, batch)
        assert close(slope, weighed(torch.full((4,), 1 / 3, dtype=torch.float64), each), 1e-9)
    for other in (0, 2, 3):
        assert slope["head.weight"][3 * other : 3 * other + 3].any()
    assert metrics["loss"].isfinite()
    again, _ = algo.meta_grad({**params, **{n: p for n, p in slope.items() if "memory." in n}}, batch, VMAP)
    assert all(p.isfinite().all() for p in learned(again).values())


def test_where_no_head_has_a_target_nothing_moves(mtl: Any) -> None:
    for needs in ("losses", "gram"):
        algo, params = given(mtl, needs, torch.full((4,), torch.nan, dtype=torch.float64))
        blank = Batch(mtl.sample.x, {name: torch.full_like(y, -100) for name, y in mtl.sample.y.items()})
        algo, blank = sharing(algo, blank)
        slope, _ = algo.meta_grad(params, blank, VMAP)
        assert not any(p.any() for p in learned(slope).values())


def drawn_lots(params: Params) -> Params:
    generator = torch.Generator().manual_seed(0)
    return {LOTS: torch.rand(params[LOTS].shape, generator=generator)} if LOTS in params else {}


@pytest.mark.parametrize("balance", BALANCES)
def test_one_head_has_nothing_to_be_weighed_against(balance: str, conv_net: Callable[..., Net]) -> None:
    """Whatever keeps something of each head, or asks for gradients, is refused; a mean of one is what it is."""
    try:
        weigher = construct(yaml.safe_load((CONF / "balance" / f"{balance}.yaml").read_text()), "balance")
    except UserError as error:
        pytest.skip(str(error))  # an extra is not installed
    net = replace(conv_net("none"), trained={"digit": Head("class", 10)})
    params = net.init(torch.Generator().manual_seed(0))
    if weigher.needs == "losses" and not weigher.init(1, 5):
        assert kept(weigher, net, params, net.shared(params)) == {} and weigher(torch.ones(1), None, {})[
            0
        ].tolist() == [1.0]
        return
    with pytest.raises(UserError, match=r"^balance: \w+ weighs heads .* have one, digit\. Leave balance= out"):
        kept(weigher, net, params, net.shared(params))
