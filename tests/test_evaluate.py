from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

import metarun.evaluate
from metarun.data.draw.episodes import Sizes
from metarun.data.draw.rows import RowEpisodeSampler, Rows
from metarun.data.sinusoid import SinusoidSampler
from metarun.engine.mapping import Parallel
from metarun.evaluate import Exam, dice, evaluate, milestones, summary, worth
from metarun.maths.inner import last
from metarun.maths.pooled import tallies
from metarun.types import Batch, Draw, Episode, Head, Outputs, Params

LOOP = Parallel("loop", 1)
CPU = torch.device("cpu")
HEADS = {"digit": Head("class", 3), "ink": Head("value", 1)}


@dataclass(frozen=True)
class Breaking:
    """An algorithm whose outputs are `value` from φ₂ on, in tasks whose first query is brighter than `limit`."""

    inner: Any
    limit: float
    value: float

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        for step, fast in enumerate(self.inner.adapt(params, support, steps)):
            yield {**fast, "at": torch.tensor(float(step))}

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        gone = (x[0].mean() > self.limit) & (fast["at"] > 1)
        own = {name: p for name, p in fast.items() if name != "at"}
        return {name: torch.where(gone, self.value, out) for name, out in self.inner.predict(own, x).items()}


@dataclass(frozen=True)
class TwoHeads:
    """Tasks whose queries are drawn, with a class and a value to be predicted, both 0; nothing to adapt to."""

    heads = HEADS
    fingerprint = "two heads"
    from_disk = False

    def gather(self, draw: Draw) -> Episode:
        x = draw["x"][..., None]  # [T, B, 1]
        y = {"digit": torch.zeros(x.shape[:2], dtype=torch.int64), "ink": torch.zeros_like(x)}
        return Episode(Batch(x, y), Batch(x, y))


class TakingTurns(TwoHeads):
    """The same, but one task has a class alone, the next one a value alone."""

    heads: ClassVar = {name: replace(head, gaps=True) for name, head in HEADS.items()}

    def gather(self, draw: Draw) -> Episode:
        query = super().gather(draw).query
        odd = (torch.arange(len(query.x)) % 2 == 1)[:, None]
        digit = query.y["digit"].masked_fill(odd, -100)
        batch = Batch(query.x, {"digit": digit, "ink": query.y["ink"].masked_fill(~odd[..., None], math.nan)})
        return Episode(batch, batch)


@dataclass(frozen=True)
class Repeating:
    """The class is right, the value is the query itself."""

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        yield params

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return {"digit": torch.tensor([1.0, 0.0, 0.0]).expand(len(x), 3), "ink": x}


def exam(found: Any, steps: int = 3, marks: Collection[int] | None = None, tasks: int = 7, seed: int = 5) -> Exam:
    draw = found.test.draw(tasks, torch.Generator().manual_seed(seed))
    return Exam(found.test, draw, steps, milestones(steps) if marks is None else marks)


def test_the_interval_is_1_96_standard_errors() -> None:
    """Of 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9)/3 = 14/3, so 1.96 √(14/3) / 2."""
    found = summary(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert found == {"mean": 3.0, "ci95": pytest.approx(1.96 * (14 / 3) ** 0.5 / 2), "tasks": 4}
    assert summary(torch.tensor([2.0])) == {"mean": 2.0, "ci95": 0.0, "tasks": 1}


def test_a_task_without_a_number_is_in_no_mean() -> None:
    found = summary(torch.tensor([1.0, math.nan, 2.0, math.inf, 3.0, 6.0]))
    assert found == {"mean": 3.0, "ci95": pytest.approx(1.96 * (14 / 3) ** 0.5 / 2), "tasks": 4}
    nothing = summary(torch.tensor([math.nan, math.nan]))
    assert math.isnan(nothing["mean"]) and math.isnan(nothing["ci95"]) and nothing["tasks"] == 0


def test_splits_draw_otherwise_from_the_same_seed_and_a_split_always_alike() -> None:
    lots = [torch.rand(9, generator=dice(split, 3)) for split in ("val", "test", "test")]
    assert lots[1].equal(lots[2]) and not lots[0].equal(lots[1])
    assert not torch.rand(9, generator=dice("test", 4)).equal(lots[1])


def test_milestones_are_all_steps_to_ten_then_1_2_5_and_the_last() -> None:
    assert milestones(0) == [0]
    assert milestones(3) == [0, 1, 2, 3]
    assert milestones(50) == [*range(11), 20, 50]
    assert milestones(120) == [*range(11), 20, 50, 100, 120]


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
def test_scores_are_those_of_a_naive_loop_that_adapts_anew_for_each_row(
    algo_name: str, norm_stats: str, case: Callable[..., Any]
) -> None:
    found = case(algo_name, "batch", norm_stats)
    tasks: Episode = found.test.gather(exam(found).draw)
    verdict = evaluate(found.tested, found.params, exam(found, 12), Parallel("vmap", 3))
    taken = len(list(found.tested.adapt(found.params, tree_map(lambda t: t[0], tasks.support), 12))) - 1
    assert list(verdict.by_step) == [step for step in (*range(11), 12) if step <= taken]
    for step, row in verdict.by_step.items():
        hits, losses = [], []
        for t in range(7):
            support, query = tree_map(lambda leaf, t=t: leaf[t], tasks)
            fast = last(found.tested.adapt(found.params, support, step))
            logits = found.tested.predict(fast, query.x)["class"]
            hits.append((logits.argmax(-1) == query.y["class"]).double().mean())
            losses.append(F.cross_entropy(logits, query.y["class"]))
        for name, values in (("accuracy", hits), ("loss", losses)):
            assert row[name] == pytest.approx(summary(torch.stack(values)), abs=1e-6)
    assert verdict.scores == verdict.by_step[taken]


def test_neither_mapping_nor_pieces_change_the_scores(
    algo_name: str, case: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = case(algo_name)

    def losses(parallel: Parallel) -> list[float]:
        verdict = evaluate(found.tested, found.params, exam(found, 4), parallel)
        return [row["loss"][part] for row in verdict.by_step.values() for part in ("mean", "ci95")]

    reference = losses(LOOP)
    assert all(losses(Parallel("vmap", chunk)) == pytest.approx(reference, abs=1e-12) for chunk in (1, 3, 7, 99))
    monkeypatch.setattr(metarun.evaluate, "AT_ONCE", 2)
    assert losses(Parallel("vmap", 3)) == pytest.approx(reference, abs=1e-12)


def test_only_the_marked_steps_are_judged_and_the_last_of_an_adaptation_that_ends_early(
    algo_name: str, case: Callable[..., Any]
) -> None:
    found = case(algo_name)
    whole = evaluate(found.tested, found.params, exam(found, 5), LOOP)
    some = evaluate(found.tested, found.params, exam(found, 5, marks=(5, 2)), LOOP)
    last = max(whole.by_step)
    assert list(some.by_step) == ([2, 5] if last == 5 else [last])
    for step, row in some.by_step.items():
        for name, one in row.items():
            assert one == pytest.approx(whole.by_step[step][name], abs=1e-12)


@dataclass(frozen=True)
class Telling:
    """Tells of each φ how bright the support set was, and of which step it is; it has the trunk and head of `inner`."""

    inner: Any

    def adapt(self, params: Params, support: Batch, steps: int) -> Iterator[Params]:
        for step, fast in enumerate(self.inner.adapt(params, support, steps)):
            yield {**fast, "metric.brightness": support.x.mean() + step}

    def predict(self, fast: Params, x: Tensor) -> Outputs:
        return self.inner.predict(fast, x)


@pytest.mark.parametrize("name", ["maml", "transfer"])  # whose φ are predicted with one by one, and together
@pytest.mark.parametrize("parallel", [LOOP, Parallel("vmap", 3)], ids=str)
def test_what_phi_tells_of_its_task_stands_beside_the_accuracy(
    name: str, parallel: Parallel, case: Callable[..., Any]
) -> None:
    found = case(name)
    asked = exam(found)
    verdict = evaluate(Telling(found.tested), found.params, asked, parallel)
    brightness = asked.sampler.gather(asked.draw).support.x.mean((1, 2, 3, 4))
    for step, scores in verdict.by_step.items():
        assert scores["brightness"] == pytest.approx(summary(brightness + step))
    assert verdict.scores["brightness"] == verdict.by_step[3]["brightness"]


def test_without_adaptation_there_is_one_row(algo_name: str, case: Callable[..., Any]) -> None:
    found = case(algo_name)
    assert list(evaluate(found.tested, found.params, exam(found, 0), LOOP).by_step) == [0]


def test_evaluation_leaves_the_parameters_alone_and_is_repeatable(algo_name: str, case: Callable[..., Any]) -> None:
    found = case(algo_name)
    before = tree_map(torch.clone, found.params)
    one, other = (evaluate(found.tested, found.params, exam(found), LOOP) for _ in range(2))
    assert one == other
    assert all(p.equal(before[name]) for name, p in found.params.items())


def test_between_pieces_it_tells_how_many_tasks_are_done_and_can_be_stopped(
    case: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, calls = case("maml"), []
    monkeypatch.setattr(metarun.evaluate, "AT_ONCE", 3)
    evaluate(found.tested, found.params, exam(found, 1), LOOP, between=lambda *done: calls.append(done))
    assert calls == [(0, 7), (3, 7), (6, 7), (7, 7)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(found.tested, found.params, exam(found, 1), LOOP, between=stop)


def test_the_hash_names_the_episodes_and_nothing_else(case: Callable[..., Any]) -> None:
    names = [exam(found).fingerprint for found in map(case, ("maml", "reptile", "mtl", "transfer"))]
    assert len(set(names)) == 1 and names[0].startswith("sha256:")
    found = case("maml")
    assert exam(found, seed=6).fingerprint != names[0] != exam(found, tasks=8).fingerprint


def rows(shots: int, queries: int) -> RowEpisodeSampler:
    m = torch.arange(12)
    table = Rows(m, torch.zeros_like(m), {"third": m % 3}, {"third": Head("class", 3)})
    return RowEpisodeSampler(torch.zeros(12, 1, 3, 3, dtype=torch.uint8), table, shots, queries, "rows")


@pytest.mark.parametrize("kind", ["sinusoid", "rows", "images"])
def test_the_hash_tells_where_support_ends(kind: str, case: Callable[..., Any]) -> None:
    """One shot and two queries are drawn as two shots and one query are, from the same seed."""
    images = case("maml").test.inner
    exams = []
    for shots, queries in ((1, 2), (2, 1)):
        sampler: Any = {
            "sinusoid": SinusoidSampler(1.0, shots, queries, CPU),
            "rows": rows(shots, queries),
            "images": replace(images, sizes=Sizes((3, 3), (shots, shots), queries)),
        }[kind]
        exams.append(Exam(sampler, sampler.draw(4, torch.Generator().manual_seed(0)), 1, [1]))
    one, other = exams
    assert all(lots.equal(other.draw[name]) for name, lots in one.draw.items())
    assert one.fingerprint != other.fingerprint and not set(one.tasks) & set(other.tasks)


def test_the_hash_tells_the_order_of_classes_and_images(case: Callable[..., Any]) -> None:
    first = exam(case("maml"))
    names = [first.fingerprint]
    for name, dim in (("class", 1), ("image", 1), ("image", 2)):
        names.append(replace(first, draw={**first.draw, name: first.draw[name].flip(dim)}).fingerprint)
    assert len(set(names)) == 4
    laid = {name: lots.transpose(0, 1).contiguous().transpose(0, 1) for name, lots in first.draw.items()}
    assert replace(first, draw=laid).fingerprint == names[0]  # how it lies in memory is no matter


def test_every_task_has_a_name_that_does_not_ask_how_many_there_are(case: Callable[..., Any]) -> None:
    few, many = exam(case("maml")), exam(case("maml"), tasks=9)
    cut = replace(many, draw={name: lots[:7] for name, lots in many.draw.items()})
    assert cut.tasks == many.tasks[:7] and len(set(many.tasks)) == 9
    assert cut.fingerprint != many.fingerprint != few.fingerprint


def test_the_hash_tells_data_apart_that_draw_alike() -> None:
    one, other = (SinusoidSampler(phase, 2, 2, torch.device("cpu")) for phase in (1.0, 2.0))
    draw = one.draw(3, torch.Generator().manual_seed(0))
    assert Exam(one, draw, 1, [1]).fingerprint != Exam(other, draw, 1, [1]).fingerprint


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("parallel", [LOOP, Parallel("vmap", 3)], ids=str)
@pytest.mark.parametrize("algo", ["maml", "reptile", "transfer"])
def test_a_task_that_diverged_is_wrong_for_every_query_and_in_no_mean_of_losses(
    algo: str, parallel: Parallel, value: float, case: Callable[..., Any]
) -> None:
    """From φ₂ on: before, each task counts as it is. Logits that are no numbers would else be right for class 0."""
    found = case(algo)
    whole = exam(found)
    tasks: Episode = found.test.gather(whole.draw)
    first = tasks.query.x[:, 0].flatten(1).mean(1)
    limit = float(first.sort().values[3:5].mean())  # three are brighter
    gone = first > limit
    verdict = evaluate(Breaking(found.tested, limit, value), found.params, whole, parallel)
    assert verdict.tasks == 7 and verdict.diverged == {0: 0, 1: 0, 2: 3, 3: 3}
    for step, row in verdict.by_step.items():
        hits, losses = torch.zeros(7).double(), torch.full((7,), math.nan).double()
        for t in range(7):
            if step < 2 or not gone[t]:
                support, query = tree_map(lambda leaf, t=t: leaf[t], tasks)
                logits = found.tested.predict(last(found.tested.adapt(found.params, support, step)), query.x)["class"]
                hits[t] = (logits.argmax(-1) == query.y["class"]).double().mean()
                losses[t] = F.cross_entropy(logits, query.y["class"])
        assert row["accuracy"] == pytest.approx(summary(hits), abs=1e-6) and row["accuracy"]["tasks"] == 7
        assert row["loss"] == pytest.approx(summary(losses), abs=1e-6)
        assert row["loss"]["tasks"] == (7 if step < 2 else 4)


@pytest.mark.parametrize("parallel", [LOOP, Parallel("vmap", 3)], ids=str)
def test_one_head_that_diverged_makes_a_task_wrong_for_all(parallel: Parallel) -> None:
    """Of four tasks one has an infinite value, another one whose square is beyond float32: mse 2.5 and 12.5 stay."""
    x = torch.tensor([[1.0, 2.0], [1.0, math.inf], [3.0, 4.0], [1e30, 1.0]])
    sampler: Any = TwoHeads()
    algo: Any = Repeating()
    verdict = evaluate(algo, {"unused": torch.zeros(1)}, Exam(sampler, {"x": x}, 1, [1]), parallel)
    assert verdict.diverged == {0: 2}
    right, error = verdict.scores["digit/accuracy"], verdict.scores["ink/mse"]
    assert (right["mean"], right["tasks"]) == (0.5, 4) and verdict.scores["accuracy"] == right
    assert (error["mean"], error["tasks"]) == (7.5, 2) and verdict.scores["loss"]["tasks"] == 2


def test_where_every_task_diverged_nothing_is_right_and_there_is_no_loss(case: Callable[..., Any]) -> None:
    found = case("maml")
    verdict = evaluate(Breaking(found.tested, -1.0, math.nan), found.params, exam(found), LOOP)
    assert verdict.diverged[3] == 7
    assert verdict.scores["accuracy"] == {"mean": 0.0, "ci95": 0.0, "tasks": 7}
    assert math.isnan(verdict.scores["loss"]["mean"]) and verdict.scores["loss"]["tasks"] == 0


def test_a_validation_that_lost_tasks_of_a_regression_is_worse_than_any_that_lost_none() -> None:
    """However small the error on those that are left; an accuracy counts lost tasks as wrong anyway."""

    def of(mean: float, tasks: int, name: str = "mse") -> float:
        found: Any = {"mean": mean, "ci95": 0.0, "tasks": tasks}
        return worth(name, 10, {name: found, "loss": found})

    assert of(0.5, 10) > of(2.0, 10) > of(1e300, 10) > of(0.1, 9) > of(0.01, 2)
    assert math.isfinite(of(0.1, 1)) and math.isnan(of(math.nan, 0))
    assert of(0.9, 10, "accuracy") > of(0.5, 10, "digit/accuracy") > of(0.4, 10, "accuracy")


def test_a_validation_of_few_tasks_with_a_head_lost_none() -> None:
    """Of ten tasks three have rows of the head, and none diverged."""
    scores: Any = {"ink/mse": {"mean": 0.5, "ci95": 0.0, "tasks": 3}, "loss": {"mean": 1.0, "ci95": 0.0, "tasks": 10}}
    assert worth("ink/mse", 10, scores) == -0.5


@pytest.mark.parametrize("parallel", [LOOP, Parallel("vmap", 3)], ids=str)
def test_what_no_query_of_a_task_has_a_target_for_is_in_no_mean(parallel: Parallel) -> None:
    """Tasks 0 and 2 have digits, all right; 1 and 3 values, with errors of 1 and 9, and of 25 and 49."""
    x = torch.tensor([[1.0, 2.0], [1.0, 3.0], [0.0, 1.0], [5.0, 7.0]])
    sampler: Any = TakingTurns()
    algo: Any = Repeating()
    found = evaluate(algo, {"unused": torch.zeros(1)}, Exam(sampler, {"x": x}, 1, [1]), parallel).scores
    assert found["digit/accuracy"] == found["accuracy"] == {"mean": 1.0, "ci95": 0.0, "tasks": 2}
    assert (found["ink/mse"]["mean"], found["ink/mse"]["tasks"]) == (21.0, 2) and found["mse"] == found["ink/mse"]
    assert found["loss"]["tasks"] == 4


def test_what_diverged_is_said_once_to_whom_it_concerns(case: Callable[..., Any]) -> None:
    """Of all tasks the caller tells, who knows what that means."""
    found, told = case("maml"), list[str]()
    asked = exam(found)
    bright = asked.sampler.gather(asked.draw).query.x[:, 0].mean((1, 2, 3))
    for limit in (-1.0, float(bright.median()), 2.0):
        evaluate(Breaking(found.tested, limit, math.nan), found.params, asked, LOOP, say=told.append)
    assert told == ["adaptation diverged in 3 of 7 tasks"]


def test_a_task_is_judged_without_waiting_for_the_device() -> None:
    """On the meta device nothing can be fetched."""
    outputs = {"digit": torch.empty(4, 3, device="meta"), "ink": torch.empty(4, 1, device="meta")}
    y = {"digit": torch.empty(4, dtype=torch.int64, device="meta"), "ink": torch.empty(4, 1, device="meta")}
    found = metarun.evaluate._judged(HEADS, outputs, y, {})
    assert found["diverged"].device.type == found["accuracy"].device.type == "meta"
    counts = tallies(HEADS, outputs, y, found["diverged"] == 0)
    assert {tally.device.type for tally in counts.values()} == {"meta"}


def test_out_of_memory_halves_the_chunk_and_changes_no_score(
    case: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = case("maml")
    expected = evaluate(found.tested, found.params, exam(found, 2), Parallel("vmap", 7))
    stack, tried = Parallel.stack, []

    def small(self: Parallel, fn: Any, params: Any, tasks: Any) -> Any:
        tried.append(self.chunk)
        if self.chunk > 2:
            raise torch.OutOfMemoryError
        return stack(self, fn, params, tasks)

    monkeypatch.setattr(Parallel, "stack", small)
    verdict = evaluate(found.tested, found.params, exam(found, 2), Parallel("vmap", 7))
    assert tried == [7, 3, 1]
    assert verdict.scores["accuracy"] == expected.scores["accuracy"]


def test_a_frozen_trunk_sees_the_queries_of_a_task_once(case: Callable[..., Any]) -> None:
    """However many steps are judged; what moves is mapped over."""
    found, seen = case("transfer"), []
    trunk = found.tested.net.module.trunk
    trunk.register_forward_pre_hook(lambda *_: seen.append(1))
    verdict = evaluate(found.tested, found.params, exam(found, 20), Parallel("vmap", 7))
    assert len(verdict.by_step) == 12 and len(seen) == 2  # the support set, and the queries


def test_metrics_of_all_queries_stand_beside_the_means_where_they_are_asked_for() -> None:
    """A class that is always right, and values whose mean is guessed as well as could be."""
    x = torch.rand(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    asked = Exam(TwoHeads(), {"x": x}, 1, [1])
    plain, more = (evaluate(Repeating(), {"unused": torch.zeros(1)}, asked, LOOP, together=t) for t in (False, True))
    assert more.scores == {**plain.scores, **{name: more.scores[name] for name in more.scores.keys() - plain.scores}}
    assert more.scores.keys() - plain.scores == {"digit/f1", "digit/calibration", "ink/r2"}
    assert more.scores["digit/f1"]["mean"] == 1.0
    confidence = math.e / (math.e + 2)
    assert more.scores["digit/calibration"]["mean"] == pytest.approx(1 - confidence)


@pytest.mark.parametrize("chunk", [1, 3])
def test_neither_mapping_nor_pieces_change_the_metrics_of_all_queries(
    chunk: int, case: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = case("protonet")
    whole = evaluate(found.tested, found.params, exam(found), LOOP, together=True).scores["calibration"]
    monkeypatch.setattr(metarun.evaluate, "AT_ONCE", 2)
    pieces = evaluate(found.tested, found.params, exam(found), Parallel("vmap", chunk), together=True)
    assert pieces.scores["calibration"] == pytest.approx(whole, abs=1e-12)
