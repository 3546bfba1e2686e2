from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metarun.algos.incontext import InContext, Layer
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.maths.losses import judge
from metarun.maths.net import Net
from metarun.maths.prototypes import NEVER
from metarun.types import Batch, Episode, Head, Params

KEYS: dict[str, Any] = {"layers": 2, "heads": 2, "width": 6, "scale": 10.0}


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
def found(case: Callable[..., Any]) -> Any:
    """On a small network without batch norm, for three classes, with layers that are no longer the identity."""
    made = case("incontext", "none", **KEYS)
    lively = {n: p + random(*p.shape) / 4 if n.startswith("reader.") else p for n, p in made.params.items()}
    return made._replace(params=lively)


def one_task(found: Any) -> Episode:
    return tree_map(lambda t: t[0], found.sample)


def test_before_training_a_layer_leaves_features_alone_and_labels_come_from_attention() -> None:
    layer = Layer(6, 2).double()
    h, rows, v = random(3, 6), random(5, 6), torch.zeros(3, 4, dtype=torch.float64)
    labels = F.one_hot(torch.tensor([0, 1, 2, 0, 1]), 4).double()
    with torch.no_grad():
        layer.back.bias.zero_(), layer.down.bias.zero_(), layer.gates.weight.zero_(), layer.gates.bias.fill_(50.0)
        new_h, new_v = layer(h, v, rows, labels, torch.ones(5, dtype=torch.bool))
    assert torch.allclose(new_h, h, atol=1e-12) and torch.allclose(new_v.sum(1), torch.ones(3).double(), atol=1e-12)
    assert (new_v[:, :3] > 0).all() and not new_v[:, 3].any()


@pytest.mark.parametrize("rows", [1, 5, 60])
def test_a_querys_label_is_a_vote_of_the_rows_whatever_was_learned(rows: int) -> None:
    """Each class has a share from 0 to 1, and all have 1 at most, among few rows as among many."""
    layer, v = Layer(6, 2).double(), torch.zeros(7, 3, dtype=torch.float64)
    labels = F.one_hot(torch.arange(rows) % 3, 3).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(10 * random(*p.shape))
        for _ in range(3):
            _, v = layer(random(7, 6), v, random(rows, 6), labels, torch.ones(rows, dtype=torch.bool))
            assert (v >= 0).all() and (v.sum(1) <= 1 + 1e-12).all() and v.any()


def test_attention_to_rows_is_torchs() -> None:
    """Where labels are not compared, h is that of nn.MultiheadAttention and of two linear layers."""
    layer, peer = Layer(6, 2).double(), nn.MultiheadAttention(6, 2, bias=False, batch_first=True).double()
    h, rows, none = random(3, 6), random(5, 6), torch.zeros(5, 4, dtype=torch.float64)
    known = torch.tensor([True, True, False, True, True])
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(random(*p.shape))
        peer.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key.weight, layer.value.weight]))
        peer.out_proj.weight.copy_(layer.back.weight)
        seen, row_seen = layer.norm(h)[None], layer.norm(rows)[None]
        expected = h + peer(seen, row_seen, row_seen, key_padding_mask=~known[None])[0][0] + layer.back.bias
        expected = expected + layer.down(F.gelu(layer.up(layer.norm_up(expected))))
        assert torch.allclose(layer(h, none[:3], rows, none, known)[0], expected, atol=1e-10)


def test_without_attention_it_is_a_nearest_class_mean_by_cosine(found: Any) -> None:
    """With closed gates, no values and no hidden units, features are those of the linear embedding."""
    names = ("back", "down")
    still = {n: torch.zeros_like(p) if any(f".{name}." in n for name in names) else p for n, p in found.params.items()}
    still |= {n: p - 1000 for n, p in still.items() if n.endswith("gates.bias")}
    support, query = one_task(found)
    net, weight, bias = found.algo.net, still["reader.embed.weight"], still["reader.embed.bias"]
    seen, asked = (F.linear(net.features(still, x), weight, bias) for x in (support.x, query.x))
    means = torch.stack([seen[support.y["class"] == n].mean(0) for n in range(3)])
    expected = 10 * F.cosine_similarity(asked[:, None], means[None], dim=2)
    assert torch.allclose(scores(found.algo, still, support, query.x), expected, rtol=1e-5)


def test_rows_and_classes_are_sets_also_where_all_layers_have_learned(found: Any) -> None:
    support, query = one_task(found)
    one = scores(found.algo, found.params, support, query.x)
    order, names = torch.tensor([3, 1, 5, 0, 2, 4]), torch.tensor([2, 0, 1])
    mixed = batch(support.x[order], names[support.y["class"][order]])
    assert torch.allclose(scores(found.algo, found.params, mixed, query.x)[:, names], one, atol=1e-12)


def test_labels_of_other_rows_change_what_a_query_is_taken_for(found: Any) -> None:
    """Beyond the means: a third class of its own for the last rows changes how the others compare."""
    support, query = one_task(found)
    two = support.y["class"].clamp(max=1)
    logits = scores(found.algo, found.params, batch(support.x, two), query.x)
    other = scores(found.algo, found.params, support, query.x)
    assert not torch.allclose(logits[:, 0], other[:, 0], atol=1e-3)  # the rows of class 0 are the same


def test_a_query_is_judged_alone_whatever_others_are_asked_beside_it(found: Any) -> None:
    support, query = one_task(found)
    together, alone = (scores(found.algo, found.params, support, x) for x in (query.x, query.x[:1]))
    assert torch.allclose(together[:1], alone, atol=1e-12)


def test_more_ways_than_it_was_trained_with_change_nothing_where_nobody_is_of_them(found: Any) -> None:
    more = InContext(found.algo.net.testing(classes(200)), **KEYS)
    support, query = one_task(found)
    one, other = (scores(algo, found.params, support, query.x) for algo in (found.algo, more))
    assert torch.allclose(other[:, :3], one, atol=1e-12) and (other[:, 3:] <= NEVER).all()


def test_all_of_it_is_learned_and_a_mapped_step_is_a_loops(found: Any, close: Callable[..., bool]) -> None:
    (one, _), (other, _) = (
        found.algo.meta_grad(found.params, found.sample, p) for p in (Parallel("vmap", 6), Parallel("loop", 1))
    )
    assert close(one, other)
    unseen = {n for n, slope in one.items() if not slope.any()}
    assert not unseen, unseen


@pytest.mark.parametrize("y", [[0, 0, -100], [-100, -100, -100]], ids=["two classes absent", "all absent"])
def test_an_absent_class_is_chosen_for_no_query_and_gives_no_nan(y: list[int], found: Any) -> None:
    task = one_task(found)
    x, queries = (t[:3].clone().requires_grad_() for t in (task.support.x, task.query.x))
    logits = scores(found.algo, found.params, batch(x, y), queries)
    loss = judge(classes(3), {"class": logits}, {"class": torch.zeros(3, dtype=torch.long)})[0]
    assert loss.isfinite() and logits.argmax(-1).tolist() == [0, 0, 0]
    slopes = torch.autograd.grad(loss, [x, queries], materialize_grads=True)
    assert all(slope.isfinite().all() for slope in slopes)


def test_heads_that_do_not_share_the_width_are_refused(case: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"^algo\.width=64 cannot be shared by algo\.heads=5\. Give a multiple\.$"):
        case("incontext", heads=5)


def test_tasks_of_values_are_refused(linear_net: Net) -> None:
    with pytest.raises(UserError, match=r"one head apart.* data=omniglot"):
        InContext(linear_net, **KEYS).init(torch.Generator())
