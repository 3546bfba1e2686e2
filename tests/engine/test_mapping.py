from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.engine.mapping import Parallel
from metarun.maths.losses import by_head
from metarun.types import Batch, Head, Params, Score

MAPPINGS = [Parallel("loop", 1), Parallel("loop", 4), *(Parallel("vmap", chunk) for chunk in (1, 2, 4, 5, 6, 99))]
HEADS = {name: Head("value", 1, gaps=True) for name in "abc"}
PARAMS = {"own": torch.tensor([1.0, -2.0, 0.5]), "common": torch.tensor(0.3), "memory.seen": torch.tensor(2.0)}


@pytest.mark.parametrize("parallel", MAPPINGS, ids=str)
def test_stack_mean_and_mean_grad_are_what_their_names_say(parallel: Parallel) -> None:
    """For ½ Σ (a − w)²: values one by one, their mean, and the gradient w − mean a."""
    tasks = {"a": torch.arange(12.0).view(6, 2)}
    params = {"w": torch.tensor([1.0, 2.0])}

    def loss(params: Params, task: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        value = 0.5 * ((task["a"] - params["w"]) ** 2).sum()
        return value, {"value": value.detach()}

    values = 0.5 * ((tasks["a"] - params["w"]) ** 2).sum(1)
    assert torch.allclose(parallel.stack(loss, params, tasks)[0], values)
    assert torch.allclose(parallel.mean(loss, params, tasks)[0], values.mean())
    slope, metrics = parallel.mean_grad(loss, params, tasks)
    assert torch.allclose(slope["w"], params["w"] - tasks["a"].mean(0))
    assert torch.allclose(metrics["value"], values.mean())


@pytest.mark.parametrize("parallel", MAPPINGS, ids=str)
def test_a_metric_is_a_mean_over_the_tasks_that_have_it_and_a_loss_over_all(parallel: Parallel) -> None:
    tasks = {"a": torch.arange(6.0), "none": torch.tensor([True, False, True, True, False, True])}

    def loss(params: Params, task: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        value = task["a"] * params["w"]
        found = torch.where(task["none"], torch.nan, task["a"])
        return value, {"loss": value.detach(), "some": found, "never": torch.nan * task["a"]}

    _, metrics = parallel.mean_grad(loss, {"w": torch.tensor(2.0)}, tasks)
    assert float(metrics["loss"]) == pytest.approx(5) and float(metrics["some"]) == pytest.approx(2.5)
    assert metrics["never"].isnan()
    _, metrics = parallel.mean_grad(loss, {"w": torch.tensor(torch.nan)}, tasks)
    assert metrics["loss"].isnan()


def test_a_batch_is_cut_into_chunks_that_cover_it(episode: Callable[..., Any]) -> None:
    seen: list[int] = []

    def count(params: Params, task: Batch) -> Tensor:
        return task.x.sum()

    class Counting(Parallel):
        def stack(self, fn: Callable[..., Any], params: Params, tasks: Any) -> Any:
            seen.append(len(tasks.x))
            return super().stack(fn, params, tasks)

    total = Counting("vmap", 3).mean(count, {}, episode(tasks=7).support)
    assert seen == [3, 3, 1]
    assert torch.allclose(total, episode(tasks=7).support.x.sum() / 7)


def test_a_mapping_names_itself() -> None:
    assert str(Parallel("loop", 1)) == "loop" and str(Parallel("vmap", 32)) == "vmap chunk 32"


def score(params: Params, task: Batch) -> Score:
    """The h-th head predicts own_h + common · x; memory is what it is not about."""
    outputs = {name: params["own"][h] + params["common"] * task.x[:, None] for h, name in enumerate(HEADS)}
    return by_head(HEADS, outputs, task.y)


def tasks(known: Tensor) -> Batch:
    """Random targets for those of the rows [H, T, B] that are known."""
    draws = torch.randn(4, *known.shape[1:], generator=torch.Generator().manual_seed(0))
    y = draws[1:].masked_fill(~known, torch.nan)
    return Batch(draws[0], {name: one[..., None] for name, one in zip(HEADS, y)})


def expected(batch: Batch) -> tuple[Tensor, Tensor, Params]:
    """Over all rows of all tasks: each head's mean of e², its number of rows, and the means of 2e and of 2ex."""
    losses, rows, common = [], [], []
    own = torch.zeros(3, 3)
    for h, y in enumerate(batch.y.values()):
        there = ~y[..., 0].isnan()
        x = batch.x[there]
        error = PARAMS["own"][h] + PARAMS["common"] * x - y[..., 0][there]
        rows.append(len(x))
        losses.append(error.square().sum() / max(len(x), 1))
        own[h, h] = 2 * error.sum() / max(len(x), 1)
        common.append(2 * (error * x).sum() / max(len(x), 1))
    return torch.stack(losses), torch.tensor(rows), {"own": own, "common": torch.stack(common)}


UNEVEN = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(1)) < torch.tensor([0.9, 0.2, 0.0])[:, None, None]
OF_ONE = (torch.arange(6) % 3 == torch.arange(3)[:, None])[..., None] & UNEVEN[:1]  # each task has one head
FEW = OF_ONE & (torch.arange(6) < 2)[:, None]  # no task has the third


@pytest.mark.parametrize("known", [UNEVEN, OF_ONE, FEW], ids=["uneven", "one head each", "one absent"])
@pytest.mark.parametrize("parallel", MAPPINGS, ids=str)
def test_losses_are_means_over_all_rows_with_a_target_whatever_task_they_are_in(
    parallel: Parallel, known: Tensor
) -> None:
    batch = tasks(known)
    losses, rows, slopes = expected(batch)
    params = {**PARAMS, "common": PARAMS["common"].clone().requires_grad_()}
    found, counted, metrics = parallel.losses(score, params, batch)
    assert torch.allclose(found, losses) and counted.equal(rows.float())
    for one, slope in zip(found, slopes["common"]):  # with graph
        assert torch.allclose(torch.autograd.grad(one, params["common"], retain_graph=True)[0], slope, atol=1e-6)
    assert metrics["loss"] == pytest.approx(float(losses[rows > 0].mean())) and not metrics["loss"].requires_grad
    assert metrics["mse"] == metrics["loss"]


@pytest.mark.parametrize("known", [OF_ONE, FEW], ids=["one head each", "one absent"])
@pytest.mark.parametrize("parallel", MAPPINGS, ids=str)
def test_slopes_are_those_of_each_heads_loss(parallel: Parallel, known: Tensor) -> None:
    batch = tasks(known)
    losses, rows, slopes = expected(batch)
    found, counted, metrics, by_name = parallel.slopes(score, PARAMS, batch)
    assert torch.allclose(found, losses) and counted.equal(rows.float()) and not found.requires_grad
    assert by_name.keys() == slopes.keys()
    assert all(torch.allclose(by_name[name], slope, atol=1e-6) for name, slope in slopes.items())
    assert metrics["loss"] == pytest.approx(float(losses[rows > 0].mean()))


def test_one_process_has_the_total_of_its_own() -> None:
    tree = {"a": torch.ones(2)}
    assert Parallel("vmap", 2).total(tree) is tree
