from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.algos.transfer import Transfer
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.closed_head import logistic
from metarun.maths.net import Net
from metarun.maths.new_head import SCALE
from metarun.maths.source import Pretrained, with_teacher
from metarun.maths.supervised import MEAN, MOMENTUM, SHARE, training_mean
from metarun.state import groups
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


# From a finished run


def left(found: Any, known: bool = True) -> Pretrained:
    """What a run on the same problem has left, its weights drawn by another seed; without `known`, its trunk alone."""
    net: Net = found.algo.net.testing(found.algo.net.heads)
    params = {n: p.double() for n, p in net.init(torch.Generator().manual_seed(9), head=known).items()}
    return Pretrained(net if known else replace(net, trained={}), params, known, (1, 8, 8))


def taken(case: Callable[..., Any], mode: str, known: bool = True, **keys: Any) -> Any:
    """The learner with a source; what it does with float32 images of its own making is not this test's business."""
    plain = case("transfer", "batch")
    source = left(plain, known)
    own = {"source": source, "mode": mode, **keys}
    algo, tested = (replace(found, **own) for found in (plain.algo, plain.tested))
    fresh = plain.params
    params = {
        "feature": lambda: {
            ("memory." if n.startswith("trunk.") else "") + n: source.params.get(n, p) for n, p in fresh.items()
        },
        "model": lambda: {n: source.params.get(n, p) for n, p in fresh.items()},
        "target": lambda: with_teacher(fresh, source),
    }[mode]()
    return plain._replace(algo=algo, tested=tested, params=params)


def test_what_begins_from_a_source_is_trained_as_what_begins_there_by_chance(
    case: Callable[..., Any], close: Callable[..., bool]
) -> None:
    model = taken(case, "model")
    plain = replace(model.algo, source=None, mode=None)
    found, expected = (algo.meta_grad(model.params, model.sample, ONE) for algo in (model.algo, plain))
    assert found[0].keys() == expected[0].keys() and all(found[0][n].equal(p) for n, p in expected[0].items())
    feature = taken(case, "feature")
    slope, _ = feature.algo.meta_grad(feature.params, feature.sample, ONE)
    assert learned(slope).keys() == {"head.weight", "head.bias"}


def test_what_is_frozen_has_no_slope_and_changes_no_others(case: Callable[..., Any]) -> None:
    model = taken(case, "model")
    whole = learned(model.algo.meta_grad(model.params, model.sample, ONE)[0])
    frozen = replace(model.algo, frozen=["trunk.blocks.0.*", "*.bias"])
    found = learned(frozen.meta_grad(model.params, model.sample, ONE)[0])
    assert found.keys() == {n for n in whole if not n.startswith("trunk.blocks.0.") and not n.endswith(".bias")}
    assert all(torch.allclose(found[name], whole[name], atol=1e-12) for name in found)


@pytest.mark.parametrize(
    ("frozen", "told"),
    [
        (["trunk.block.*"], r"algo\.frozen names trunk\.block\.\*, which no"),
        (["trunk.*", "head.*"], "leaves nothing to"),
    ],
)
def test_patterns_that_freeze_nothing_or_everything_are_refused(
    frozen: list[str], told: str, case: Callable[..., Any]
) -> None:
    with pytest.raises(UserError, match=told):
        replace(case("transfer").algo, frozen=frozen).init(torch.Generator())


def test_each_stage_is_slower_than_the_one_above_it(case: Callable[..., Any]) -> None:
    found = case("transfer")
    pace = replace(found.algo, layer_rate=0.5).pace(found.params)
    assert {n.partition(".conv")[0] for n in pace if pace[n] == 0.25} >= {"trunk.blocks.0"}
    assert {pace[n] for n in pace if n.startswith("trunk.blocks.1")} == {0.5}
    assert {pace[n] for n in pace if n.startswith("head.")} == {1.0} and pace.keys() == learned(found.params).keys()
    plain, slow = (groups(replace(found.algo, layer_rate=rate), found.params) for rate in (1.0, 0.5))
    assert all(one is other for one, other in zip(plain, learned(found.params).values(), strict=True))
    assert [group["pace"] for group in slow] == [1.0, 0.5, 0.25]
    assert sum(len(group["params"]) for group in slow) == len(plain)


def test_a_student_that_heeds_its_labels_alone_is_trained_as_without_a_teacher(case: Callable[..., Any]) -> None:
    target = taken(case, "target", soft=0.0)
    plain = replace(target.algo, source=None, mode=None)
    found, expected = (algo.meta_grad(target.params, target.sample, ONE) for algo in (target.algo, plain))
    assert all(found[0][name].equal(p) for name, p in expected[0].items())
    assert not [name for name in learned(found[0]) if "teacher" in name]


def test_the_slope_of_a_student_is_that_of_hintons_formula(
    case: Callable[..., Any], plain_logits: Callable[..., Tensor], close: Callable[..., bool]
) -> None:
    target = taken(case, "target", soft=0.7, temperature=3.0)
    x, (y,) = target.sample.x[0], target.sample.y.values()
    leaves = {name: p.clone().requires_grad_() for name, p in learned(target.params).items()}
    student, teacher = plain_logits(leaves, x, x), plain_logits(target.algo.source.params, x, x)
    log_p, log_q = (F.log_softmax(logits / 3, -1) for logits in (teacher, student))
    soft = 9 * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    loss = 0.3 * F.cross_entropy(student, y[0]) + 0.7 * soft
    slope = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
    found, metrics = target.algo.meta_grad(target.params, target.sample, ONE)
    assert close(learned(found), slope, 1e-9) and torch.allclose(metrics["loss"], loss.detach())


def test_a_teacher_of_other_classes_is_refused_in_training_and_taken_at_the_test(case: Callable[..., Any]) -> None:
    target = taken(case, "target", known=False)
    with pytest.raises(UserError, match=r"algo\.mode=target: the source has no output layer for the classes"):
        target.algo.check_trainable()
    taken(case, "target").algo.check_trainable()
    support, query = task_of(target)
    assert scores(target, support, query.x).isfinite().all()


@pytest.mark.parametrize("unlabelled", [0, 2])
@pytest.mark.parametrize("test_adapt", ["head", "all"])
def test_a_student_fits_a_new_task_to_its_labels_and_to_what_the_teacher_fitted_to_them_makes_of_all_images(
    test_adapt: str, unlabelled: int, case: Callable[..., Any], close: Callable[..., bool]
) -> None:
    target = taken(case, "target", known=False, soft=0.6, temperature=2.0, test_adapt=test_adapt, inner_lr=0.5)
    x, labels = task_of(target).support
    y, net, params = labels["class"].clone(), target.tested.net, target.params
    y[:unlabelled] = -100
    support = Batch(x, {"class": y})
    teacher = F.normalize(target.algo.source.net.features(target.algo.source.params, support.x), dim=-1)
    told = F.linear(teacher, *logistic(teacher, y, 3))
    start = {**params, "head.weight": torch.zeros(3, 4).double(), "head.bias": torch.zeros(3).double()}
    moving = [n for n in learned(start) if test_adapt == "all" or n.startswith("head.")]
    leaves = {name: start[name].clone().requires_grad_() for name in moving}
    unit = F.normalize(net.features({**start, **leaves}, support.x), dim=-1)
    logits = F.linear(unit, leaves["head.weight"], leaves["head.bias"])
    soft = 4 * F.kl_div((logits / 2).log_softmax(-1), (told / 2).softmax(-1), reduction="batchmean")
    slope = torch.autograd.grad(0.4 * F.cross_entropy(logits, y) + 0.6 * soft, list(leaves.values()))
    expected = {name: p.detach() - 0.5 * g for (name, p), g in zip(leaves.items(), slope)}
    *_, fast = target.tested.adapt(params, support, 1)
    assert close({name: fast[name] for name in expected}, expected, 1e-9)
