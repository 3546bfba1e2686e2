from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.algos.transfer import Transfer
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.net import Net
from metarun.maths.new_head import SCALE
from metarun.maths.supervised import MEAN, MOMENTUM, SHARE, training_mean
from metarun.types import Batch, Episode, Params, learned

CLOSED = ["centroid", "imprint", "logistic"]
ONE = Parallel("vmap", 1)
ALONE: Any = {"layer_rate": 1.0, "frozen": [], "soft": 0.9, "temperature": 4.0}


def task_of(found: Any) -> Episode:
    return tree_map(lambda t: t[0], found.test.gather(found.test.draw(1, torch.Generator().manual_seed(3))))


def scores(found: Any, support: Batch, x: Tensor, params: Params | None = None) -> Tensor:
    *_, fast = found.tested.adapt(params or found.params, support, 5)
    return found.tested.predict(fast, x)["class"]


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_gradient_is_that_of_ordinary_supervised_training_on_all_classes(
    norm: str, case: Callable[..., Any], plain_logits: Callable[..., Tensor], close: Callable[..., bool]
) -> None:
    transfer = case("transfer", norm)
    x, (y,) = transfer.sample.x[0], transfer.sample.y.values()
    leaves = {name: p.clone().requires_grad_() for name, p in learned(transfer.params).items()}
    loss = F.cross_entropy(plain_logits(leaves, x, x), y[0])
    slope = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
    found, metrics = transfer.algo.meta_grad(transfer.params, transfer.sample, ONE)
    assert close(learned(found), slope, 1e-9)
    assert torch.allclose(metrics["loss"], loss.detach()) and metrics.keys() == {"loss", "accuracy"}


def test_there_is_one_head_of_all_training_classes(case: Callable[..., Any]) -> None:
    transfer = case("transfer")
    assert {name: head.size for name, head in transfer.sampler.heads.items()} == {"all": 12}
    assert transfer.params["head.weight"].shape == (12, 4)


# A cosine head


def test_a_cosine_head_is_trained_on_cosines_times_a_learned_scale(
    case: Callable[..., Any], close: Callable[..., bool]
) -> None:
    found = case("transfer", "none", head="cosine")
    x, (y,) = found.sample.x[0], found.sample.y.values()
    leaves = {name: p.clone().requires_grad_() for name, p in learned(found.params).items()}
    features, weight = found.algo.net.features(leaves, x), leaves["head.weight"]
    cosines = F.cosine_similarity(features[:, None], weight[None], dim=-1)
    slope = torch.autograd.grad(F.cross_entropy(leaves[SCALE].exp() * cosines, y[0]), list(leaves.values()))
    assert close(learned(found.algo.meta_grad(found.params, found.sample, ONE)[0]), dict(zip(leaves, slope)))
    assert "head.bias" not in leaves and found.params[SCALE].exp() == pytest.approx(10)


def test_a_new_cosine_head_starts_from_the_imprinted_weights(case: Callable[..., Any]) -> None:
    fitted, imprinted = (case("transfer", "none", head="cosine", test_adapt=by) for by in ("head", "imprint"))
    support, query = task_of(fitted)
    first = next(iter(fitted.tested.adapt(fitted.params, support, 5)))
    one, other = fitted.tested.predict(first, query.x)["class"], scores(imprinted, support, query.x)
    assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
def test_steps_of_a_new_cosine_head_are_those_of_autograd(norm_stats: str, case: Callable[..., Any]) -> None:
    found = case("transfer", "batch", norm_stats, head="cosine", inner_lr=0.1)
    support, query = task_of(found)
    features = found.tested.net.features(found.params, support.x).detach()
    source = found.params if norm_stats == "batch" else found.tested.net.given(found.params, support)
    x, y, scale = F.normalize(features), support.y["class"], found.params[SCALE].exp()
    weight = torch.stack([F.normalize(x[y == n].mean(0), dim=0) for n in range(3)])
    for _ in range(5):
        weight.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(scale * x @ F.normalize(weight).T, y), [weight])
        weight = (weight - 0.1 * slope).detach()
    expected = scale * F.normalize(found.tested.net.features(source, query.x)) @ F.normalize(weight).T
    assert torch.allclose(scores(found, support, query.x), expected, atol=1e-9)


def test_fine_tuning_with_a_cosine_head_moves_everything_and_fits_the_support_set(case: Callable[..., Any]) -> None:
    found = case("transfer", "none", head="cosine", test_adapt="all", inner_lr=0.002)
    support = task_of(found).support
    path = list(found.tested.adapt(found.params, support, 20))
    assert not any(path[-1][name].equal(p) for name, p in learned(found.params).items())
    losses = [F.cross_entropy(found.tested.predict(fast, support.x)["class"], support.y["class"]) for fast in path]
    assert losses[-1] < losses[0]


# Heads in closed form


def test_centring_is_by_the_weighted_mean_of_the_training_batches(case: Callable[..., Any]) -> None:
    """With a = MOMENTUM, batch b of t counts a(1 − a)^(t − b), divided by what all of these sum to."""
    found, generator = case("transfer", "none"), torch.Generator().manual_seed(1)
    params, means = found.params, []
    for _ in range(4):
        sample = found.sampler.gather(found.sampler.draw(5, generator))
        means.append(found.algo.net.features(params, sample.x[0]).mean(0))
        kept, _ = found.algo.meta_grad(params, sample, ONE)
        params = {**params, MEAN: kept[MEAN], SHARE: kept[SHARE]}
    weights = torch.tensor([(1 - MOMENTUM) ** b for b in (3, 2, 1, 0)], dtype=torch.float64)
    expected = (weights[:, None] * torch.stack(means)).sum(0) / weights.sum()
    assert torch.allclose(training_mean(params), expected, atol=1e-12)


def test_of_a_fixed_trunk_and_batches_of_everything_the_centre_is_the_training_mean(case: Callable[..., Any]) -> None:
    found = case("transfer", "none")
    params = found.params
    for _ in range(3):
        kept, _ = found.algo.meta_grad(params, found.sample, ONE)
        params = {**params, MEAN: kept[MEAN], SHARE: kept[SHARE]}
        mean = found.algo.net.features(params, found.sample.x[0]).mean(0)
        assert torch.allclose(training_mean(params), mean, atol=1e-12)


def test_centroid_is_the_nearest_mean_of_centred_unit_features(case: Callable[..., Any]) -> None:
    found = case("transfer", "none", test_adapt="centroid")
    kept, _ = found.algo.meta_grad(found.params, found.sample, ONE)
    params = {**found.params, MEAN: kept[MEAN], SHARE: kept[SHARE]}
    (support, query), centre = task_of(found), training_mean(params)
    seen, asked = (F.normalize(found.tested.net.features(params, x) - centre) for x in (support.x, query.x))
    means = torch.stack([seen[support.y["class"] == n].mean(0) for n in range(3)])
    assert torch.allclose(scores(found, support, query.x, params), 1 - 1 - torch.cdist(asked, means) ** 2, atol=1e-9)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_imprinted_weights_give_cosines_to_the_mean_of_unit_features(head: str, case: Callable[..., Any]) -> None:
    found = case("transfer", "none", head=head, test_adapt="imprint")
    support, query = task_of(found)
    seen, asked = (F.normalize(found.tested.net.features(found.params, x)) for x in (support.x, query.x))
    means = torch.stack([seen[support.y["class"] == n].mean(0) for n in range(3)])
    expected = 10 * F.cosine_similarity(asked[:, None], means[None], dim=-1)
    assert torch.allclose(scores(found, support, query.x), expected, atol=1e-6)


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("test_adapt", CLOSED)
@pytest.mark.parametrize("y", [[0, 0, -100], [-100, -100, -100]], ids=["one class has rows", "none has"])
def test_an_absent_class_is_chosen_for_no_query_and_gives_no_nan(
    y: list[int], test_adapt: str, head: str, case: Callable[..., Any]
) -> None:
    found = case("transfer", "none", head=head, test_adapt=test_adapt)
    support, query = task_of(found)
    logits = scores(found, Batch(support.x[:3], {"class": torch.tensor(y)}), query.x)
    assert logits.isfinite().all() and not logits.argmax(-1).any()
    assert F.cross_entropy(logits, query.y["class"]).isfinite()


def test_a_fitted_cosine_head_chooses_no_absent_class_either(case: Callable[..., Any]) -> None:
    for by in ("head", "all"):
        found = case("transfer", "none", head="cosine", test_adapt=by)
        support, query = task_of(found)
        logits = scores(found, Batch(support.x[:3], {"class": torch.tensor([2, 1, -100])}), query.x)
        assert logits.isfinite().all() and logits.argmax(-1).all()


@pytest.mark.parametrize("test_adapt", CLOSED)
def test_rows_without_a_class_count_for_nothing(test_adapt: str, case: Callable[..., Any]) -> None:
    found = case("transfer", "none", test_adapt=test_adapt)
    support, query = task_of(found)
    y = F.pad(support.y["class"], (len(query.x), 0), value=-100)
    padded = Batch(torch.cat([query.x, support.x]), {"class": y})
    one, other = (scores(found, s, query.x) for s in (support, padded))
    assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("keys", [{"head": "cosine"}, *({"test_adapt": by} for by in CLOSED)], ids=str)
def test_values_are_refused_where_classes_are_needed(keys: dict[str, Any], linear_net: Net, points: Episode) -> None:
    found: dict[str, Any] = {"head": "linear", "inner_lr": 1.0, "test_adapt": "head", **keys}
    algo, support = Transfer(linear_net, None, None, **ALONE, **found), tree_map(lambda t: t[0], points.support)
    with pytest.raises(UserError, match=r"one head apart.* data=omniglot"):
        next(iter(algo.adapt(algo.init(torch.Generator()), support, 1)))
