"""Learners that say that they are transductive see all queries of a task at once, and those are a set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.cli import CONF
from metarun.cli.help import comment
from metarun.maths.net import Net
from metarun.maths.supervised import MEAN, SHARE
from metarun.types import Batch, Episode, Head, Params

WAYS, WIDTH, TASKS = 5, 16, 40


def scores(algo: Any, params: Any, support: Batch, x: Tensor) -> Tensor:
    *_, fast = algo.adapt(params, support, 0)
    return algo.predict(fast, x)["class"]


@pytest.fixture
def found(algo_name: str, case: Callable[..., Any]) -> Any:
    """On a small network without batch norm, for three classes."""
    if "transductive" not in comment(CONF / "algo" / f"{algo_name}.yaml"):
        pytest.skip("it predicts each query by itself")
    return case(algo_name, "none")


@pytest.fixture
def task(found: Any) -> Episode:
    return tree_map(lambda t: t[0], found.test.gather(found.test.draw(1, torch.Generator().manual_seed(0))))


@pytest.fixture
def on_features(found: Any, linear_net: Net) -> Any:
    """The same on features that are the inputs themselves, for five classes."""
    trunk = partial(type(linear_net.module.trunk), WIDTH)
    return replace(found.tested, net=Net.build(trunk, {"class": Head("class", WAYS)}, "batch"))


def clusters() -> Episode:
    """Tasks of five clouds of features without negative entries, one support row and 15 queries of each."""
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    centres = normal(TASKS, 1, WAYS, WIDTH) + 1

    def batch(each: int) -> Batch:
        x = (centres + normal(TASKS, each, WAYS, WIDTH)).relu().flatten(1, 2)
        return Batch(x, {"class": torch.arange(WAYS).repeat(each).expand(TASKS, -1)})

    return Episode(batch(1), batch(15))


def seen() -> Params:
    """θ where features are inputs: what is kept of training on such clouds."""
    return {MEAN: clusters().query.x.mean((0, 1)), SHARE: torch.ones(())}


def test_on_clusters_and_one_shot_it_gains_over_the_nearest_centroid(on_features: Any) -> None:
    tasks, params = clusters(), seen()
    logits = torch.vmap(lambda s, x: scores(on_features, params, s, x))(tasks.support, tasks.query.x)
    cosines = F.normalize(tasks.query.x, dim=-1) @ F.normalize(tasks.support.x, dim=-1).mT
    found, nearest = (
        (t.argmax(-1) == tasks.query.y["class"]).double().mean(1) for t in (logits, cosines)
    )  # [TASKS]; one support row of each class, in order
    gain = found - nearest
    assert gain.mean() > 0.05 and gain.mean() > 3 * gain.std() / TASKS**0.5


def test_permuting_the_queries_permutes_the_outputs(found: Any, task: Episode) -> None:
    order = torch.randperm(len(task.query.x), generator=torch.Generator().manual_seed(1))
    one, other = (scores(found.tested, found.params, task.support, x) for x in (task.query.x, task.query.x[order]))
    assert torch.allclose(one[order], other, atol=1e-9)


def test_renaming_the_classes_renames_the_logits(found: Any, task: Episode) -> None:
    names = torch.tensor([2, 0, 1])
    renamed = Batch(task.support.x, {"class": names[task.support.y["class"]]})
    one, other = (scores(found.tested, found.params, s, task.query.x) for s in (task.support, renamed))
    assert torch.allclose(other[:, names], one, atol=1e-9) and not torch.allclose(other, one)


def test_support_rows_are_a_set_and_those_without_a_class_count_for_nothing(found: Any, task: Episode) -> None:
    y = F.pad(task.support.y["class"], (len(task.query.x), 0), value=-100)
    padded = Batch(torch.cat([task.query.x, task.support.x]), {"class": y})
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    mixed = Batch(padded.x[order], {"class": y[order]})
    one, other = (scores(found.tested, found.params, s, task.query.x) for s in (task.support, mixed))
    assert torch.allclose(one, other, atol=1e-9)


@pytest.mark.parametrize("y", [[2, 2, -100], [-100, -100, -100]], ids=["one class has rows", "none has"])
def test_an_absent_class_is_chosen_for_no_query_and_gives_no_nan(y: list[int], found: Any, task: Episode) -> None:
    support = Batch(task.support.x[:3], {"class": torch.tensor(y)})
    logits = scores(found.tested, found.params, support, task.query.x)
    assert logits.isfinite().all() and F.cross_entropy(logits, task.query.y["class"]).isfinite()
    if max(y) == 2:
        assert (logits.argmax(1) == 2).all()


def test_in_single_precision_it_chooses_the_same(on_features: Any) -> None:
    tasks = tree_map(lambda t: t[0], clusters())
    double = scores(on_features, seen(), tasks.support, tasks.query.x).argmax(-1)
    params, support, query = tree_map(lambda t: t.float() if t.is_floating_point() else t, (seen(), *tasks))
    single = scores(on_features, params, support, query.x).argmax(-1)
    assert (double == single).double().mean() > 0.98  # a query on the border may go either way
