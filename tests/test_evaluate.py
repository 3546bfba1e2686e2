from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

import metarun.evaluate
from metarun.data.sinusoid import SinusoidSampler
from metarun.engine.mapping import Parallel
from metarun.evaluate import Exam, evaluate, milestones, summary
from metarun.maths.inner import last
from metarun.types import Episode

LOOP = Parallel("loop", 1)


def exam(found: Any, steps: int = 3, marks: Collection[int] | None = None, tasks: int = 7, seed: int = 5) -> Exam:
    draw = found.test.draw(tasks, torch.Generator().manual_seed(seed))
    return Exam(found.test, draw, steps, milestones(steps) if marks is None else marks)


def test_the_interval_is_1_96_standard_errors() -> None:
    """Of 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9)/3 = 14/3, so 1.96 √(14/3) / 2."""
    found = summary(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert found == {"mean": 3.0, "ci95": pytest.approx(1.96 * (14 / 3) ** 0.5 / 2), "tasks": 4}
    assert summary(torch.tensor([2.0])) == {"mean": 2.0, "ci95": 0.0, "tasks": 1}


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


def test_the_hash_tells_data_apart_that_draw_alike() -> None:
    one, other = (SinusoidSampler(phase, 2, 2, torch.device("cpu")) for phase in (1.0, 2.0))
    draw = one.draw(3, torch.Generator().manual_seed(0))
    assert Exam(one, draw, 1, [1]).fingerprint != Exam(other, draw, 1, [1]).fingerprint


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
