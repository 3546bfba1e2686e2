from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metarun import loop as loop_module
from metarun.engine.mapping import Parallel
from metarun.errors import UserError
from metarun.evaluate import Exam, evaluate
from metarun.loop import Loop, Plan, Stopped
from metarun.optim import schedules
from metarun.state import State, load_params
from metarun.tracking import checkpoint
from metarun.types import learned

CPU = torch.device("cpu")
VMAP = Parallel("vmap", 4)
PLAN = Plan(
    seed=0,
    steps=6,
    tasks=6,
    lr=0.1,
    max_seconds=float("inf"),
    clip_value=None,
    clip_norm=None,
    log_every=3,
    val_every=2,
    patience=None,
)


class Killed(BaseException):
    """What no handler catches, as SIGKILL."""


@dataclass
class Recorder:
    """A tracker that remembers."""

    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    matrices: list[tuple[int, str, list[str], list[list[float]]]] = field(default_factory=list)

    def step(self, step: int) -> None:
        self.steps.append(step)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.rows.append((step, values))

    def matrix(self, step: int, name: str, labels: Sequence[str], cells: list[list[float]]) -> None:
        self.matrices.append((step, name, list(labels), cells))

    def say(self, text: str) -> None:
        self.said.append(text)

    def column(self, name: str) -> list[tuple[int, float]]:
        return [(step, values[name]) for step, values in self.rows if name in values]


class Noise:
    """A sampler of standard normal targets."""

    from_disk = False

    def draw(self, tasks: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"a": torch.randn(tasks, 2, generator=generator)}

    def gather(self, draw: dict[str, Tensor]) -> Tensor:
        return draw["a"]


@dataclass
class Pull:
    """Pulls w to the drawn targets, through dropout of the global generator; `change` may interfere by call."""

    change: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] = lambda call, slope, loss: (slope, loss)
    calls: int = 0

    def meta_grad(self, params: dict[str, Tensor], sample: Tensor, parallel: Parallel) -> Any:
        self.calls += 1
        kept = torch.rand(sample.shape) > 0.2
        error = (params["w"] - sample) * kept
        slope, loss = self.change(self.calls, error.mean(0), (error**2).mean())
        return {"w": slope}, {"loss": loss}


def accuracy_of(state: State) -> dict[str, Any]:
    return {"accuracy": {"mean": float(state.params["w"].sum()), "ci95": 0.0, "tasks": 1}}


def made(folder: Path, **keys: Any) -> Loop:
    """A loop over Pull and Noise, but for what is given; keys of the plan are taken by name."""
    plan = replace(PLAN, **{name: keys.pop(name) for name in list(keys) if name in Plan.__dataclass_fields__})
    parts = {
        "algo": Pull(),
        "sampler": Noise(),
        "validate": accuracy_of,
        "score": lambda s: s["accuracy"]["mean"] if "accuracy" in s else -s["mse"]["mean"],
        "factor": schedules.constant,
        "choose": lambda state, sample: VMAP,
        "stop": lambda: None,
        "tracker": Recorder(),
        "folder": folder,
        "device": CPU,
    }
    folder.mkdir(exist_ok=True)
    parts |= keys
    algo = parts.pop("algo")
    return Loop(algo=lambda _: algo, **parts, plan=plan)  # type: ignore[arg-type]


def fresh(momentum: float = 0.9, lr: float = 0.1) -> State:
    w = torch.ones(2)
    return State({"w": w}, torch.optim.SGD([w], lr=lr, momentum=momentum))


def trained(loop: Loop, state: State | None = None) -> State:
    state = state or fresh()
    loop.run(state)
    return state


# Randomness and resuming


def test_the_same_seed_gives_the_same_numbers_whatever_happened_before(tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = trained(made(tmp_path / "a"))
    torch.manual_seed(2)
    same, other = trained(made(tmp_path / "b")), trained(made(tmp_path / "c", seed=1))
    assert one.params["w"].equal(same.params["w"])
    assert not one.params["w"].equal(other.params["w"])


def test_every_step_draws_anew(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Seen(Noise):
        def gather(self, draw: dict[str, Tensor]) -> Tensor:
            seen.append(draw["a"])
            return draw["a"]

    trained(made(tmp_path, sampler=Seen(), steps=20))
    assert len({tuple(a.flatten().tolist()) for a in seen}) == 20


def test_measuring_the_mapping_does_not_change_what_dropout_draws(tmp_path: Path) -> None:
    def measured(state: State, sample: Any) -> Parallel:
        torch.rand(100)
        return VMAP

    one, other = (trained(made(tmp_path / name, choose=c)) for name, c in (("a", measured), ("b", lambda *_: VMAP)))
    assert one.params["w"].equal(other.params["w"])


class Slow(Noise):
    """A sampler worth beginning early; what it gathers is also noted."""

    from_disk = True

    def __init__(self) -> None:
        self.gathered = 0

    def gather(self, draw: dict[str, Tensor]) -> Tensor:
        self.gathered += 1
        torch.rand(3, generator=torch.Generator())  # of its own: the global one is dropout's
        return super().gather(draw)


def test_fetching_early_changes_no_number(tmp_path: Path) -> None:
    sampler = Slow()
    one, other = trained(made(tmp_path / "a")), trained(made(tmp_path / "b", sampler=sampler))
    assert one.params["w"].equal(other.params["w"]) and one.best == other.best
    assert sampler.gathered == PLAN.steps  # nothing for a step that does not come


@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_a_stopped_run_forgets_what_was_fetched_early(at: int, tmp_path: Path) -> None:
    whole, threads = trained(made(tmp_path / "whole")), threading.enumerate()
    steps = iter(range(99))
    with pytest.raises(Stopped):
        trained(made(tmp_path / "parts", sampler=Slow(), stop=lambda: 2 if next(steps) == at else None))
    assert threading.enumerate() == threads
    state = fresh()
    state.restore(checkpoint.load(tmp_path / "parts" / "last.pt"))
    assert state.step == at
    assert trained(made(tmp_path / "parts", sampler=Slow()), state).params["w"].equal(whole.params["w"])
    assert threading.enumerate() == threads


def test_what_goes_wrong_in_fetching_early_ends_the_step_that_needed_it(tmp_path: Path) -> None:
    class Broken(Slow):
        def gather(self, draw: dict[str, Tensor]) -> Tensor:
            if self.gathered == 3:
                raise UserError("the disk is gone")
            return super().gather(draw)

    tracker, threads = Recorder(), threading.enumerate()
    with pytest.raises(UserError, match="the disk is gone"):
        trained(made(tmp_path, sampler=Broken(), tracker=tracker))
    assert tracker.steps == [1, 2, 3] and threading.enumerate() == threads


def for_algorithm(found: Any, folder: Path, tracker: Recorder, **keys: Any) -> tuple[Loop, State]:
    """A loop over a real algorithm that validates as a run does, with Adam from the case's parameters."""
    params = {name: p.clone() for name, p in found.params.items()}
    state = State(params, torch.optim.Adam(list(learned(params).values()), lr=0.01))
    exam = Exam(found.test, found.test.draw(4, torch.Generator().manual_seed(1)), 1, [1])

    def validate(state: State) -> dict[str, Any]:
        return evaluate(found.tested, state.params, exam, VMAP).scores

    parts = {"algo": found.algo, "sampler": found.sampler, "validate": validate, "tracker": tracker}
    return made(folder, **{**parts, **keys}), state


@pytest.mark.parametrize("at", [0, 2, 3, 5])
def test_every_algorithm_resumes_bit_for_bit_with_dropout(
    at: int, algo_name: str, case: Callable[..., Any], tmp_path: Path
) -> None:
    found = case(algo_name, "batch", dropout=0.3)
    whole_rows, rows = Recorder(), Recorder()
    loop, whole = for_algorithm(found, tmp_path / "whole", whole_rows)
    loop.run(whole)
    steps = iter(range(99))
    stopping = {"stop": lambda: 2 if next(steps) == at else None}
    loop, state = for_algorithm(found, tmp_path / "parts", rows, **stopping)
    with pytest.raises(Stopped):
        loop.run(state)
    loop, state = for_algorithm(found, tmp_path / "parts", rows)
    state.restore(checkpoint.load(tmp_path / "parts" / "last.pt"))
    assert state.step == at
    loop.run(state)
    assert all(p.equal(whole.params[name]) for name, p in state.params.items())
    assert state.best == whole.best
    assert rows.column("val/loss") == whole_rows.column("val/loss")


class Until:
    """Kills at the n-th thing that happens."""

    def __init__(self, end: int) -> None:
        self.left = end

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


def killable(folder: Path, tracker: Recorder, happens: Callable[[], None], patch: pytest.MonkeyPatch) -> Loop:
    """A loop that calls `happens` wherever it can be killed: within steps, logs, validations, around each save."""

    def save(path: Path, content: dict[str, Any]) -> None:
        happens()
        checkpoint.save(path, content)
        happens()

    class Drawn(Noise):
        def draw(self, tasks: int, generator: torch.Generator) -> dict[str, Tensor]:
            happens()
            return super().draw(tasks, generator)

    class Logged(Recorder):
        def log(self, step: int, values: dict[str, float]) -> None:
            happens()
            tracker.log(step, values)
            happens()

    def validate(state: State) -> dict[str, Any]:
        happens()
        return accuracy_of(state)

    patch.setattr(loop_module, "checkpoint", type("Checkpoint", (), {"save": staticmethod(save)}))
    return made(folder, tracker=Logged(), sampler=Drawn(), validate=validate)


def test_killed_anywhere_it_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has some 35 points to be killed at; all are tried. Rows after the checkpoint are dropped, as in files."""
    happened: list[int] = []
    expected = Recorder()
    whole = trained(killable(tmp_path / "whole", expected, lambda: happened.append(1), monkeypatch))
    best = checkpoint.load(tmp_path / "whole" / "best.pt")
    for end in range(1, len(happened) + 1):
        folder, rows = tmp_path / str(end), Recorder()
        with pytest.raises(Killed):
            killable(folder, rows, Until(end), monkeypatch).run(fresh())
        state = fresh()
        if (folder / "last.pt").exists():
            state.restore(checkpoint.load(folder / "last.pt"))
        rows.rows = [row for row in rows.rows if row[0] <= state.step and state.step]
        killable(folder, rows, lambda: None, monkeypatch).run(state)
        assert state.params["w"].equal(whole.params["w"])
        assert state.best == whole.best
        assert checkpoint.load(folder / "best.pt")["params"]["w"].equal(best["params"]["w"])
        for name in ("train/loss", "val/accuracy"):
            assert rows.column(name) == expected.column(name)
    assert len(happened) > 30


def test_another_networks_checkpoint_is_refused() -> None:
    with pytest.raises(UserError, match=r"holds another network: w is \(3,\) there and \(2,\) here"):
        load_params({"w": torch.ones(2)}, {"w": torch.ones(3)})
    with pytest.raises(UserError, match=r"v is \(2,\) there and absent here"):
        load_params({"w": torch.ones(2)}, {"w": torch.ones(2), "v": torch.ones(2)})


def test_another_optimisers_checkpoint_is_refused() -> None:
    w = torch.ones(2)
    saved = State({"w": w}, torch.optim.Adam([w], lr=0.1)).dump()
    with pytest.raises(UserError, match=r"the checkpoint to resume is of another optimiser"):
        fresh().restore(saved)


def test_options_of_the_optimiser_typed_when_resuming_win(tmp_path: Path) -> None:
    trained(made(tmp_path))
    saved = checkpoint.load(tmp_path / "last.pt")
    state = fresh(momentum=0.5)
    state.restore(saved)
    assert state.optimizer.param_groups[0]["momentum"] == 0.5
    (buffer,) = (s["momentum_buffer"] for s in state.optimizer.state.values())
    assert buffer.equal(saved["optimizer"]["state"][0]["momentum_buffer"])


def test_told_to_stop_at_once_it_saves_nothing(tmp_path: Path) -> None:
    def stop() -> None:
        raise Stopped(2, at_once=True)

    with pytest.raises(Stopped):
        trained(made(tmp_path, stop=stop))
    assert not list(tmp_path.iterdir())


# The step


def test_the_schedule_multiplies_the_learning_rate(tmp_path: Path) -> None:
    recorder = Recorder()
    trained(made(tmp_path, tracker=recorder, log_every=1, steps=4, factor=partial(schedules.linear, final=0.0)))
    rates = [rate for _, rate in recorder.column("train/lr")]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


def towards(slope: list[float]) -> Pull:
    return Pull(lambda call, *_: (torch.tensor(slope), torch.tensor(1.0)))


@pytest.mark.parametrize(
    ("keys", "moved"),
    [
        ({}, [-3.0, 4.0]),
        ({"clip_value": 3.5}, [-3.0, 3.5]),
        ({"clip_norm": 1.0}, [-0.6, 0.8]),
        ({"clip_norm": 10.0}, [-3.0, 4.0]),
        ({"clip_value": 3.0, "clip_norm": 1.0}, [-(0.5**0.5), 0.5**0.5]),
    ],
)
def test_gradients_are_clipped_by_value_then_by_norm(
    keys: dict[str, float], moved: list[float], tmp_path: Path
) -> None:
    state = trained(made(tmp_path, algo=towards([3.0, -4.0]), steps=1, lr=1.0, **keys), fresh(0.0, 1.0))
    assert (state.params["w"] - 1).tolist() == pytest.approx(moved, rel=1e-5)


def test_out_of_memory_halves_the_chunk_until_it_fits_and_says_so(tmp_path: Path) -> None:
    used: list[int] = []

    class Hungry(Pull):
        def meta_grad(self, params: dict[str, Tensor], sample: Tensor, parallel: Parallel) -> Any:
            if parallel.chunk > 4:
                raise torch.OutOfMemoryError("out of memory")
            used.append(parallel.chunk)
            return super().meta_grad(params, sample, parallel)

    recorder = Recorder()
    hungry = made(tmp_path / "a", algo=Hungry(), tracker=recorder, choose=lambda *_: Parallel("vmap", 32))
    state = trained(hungry)
    assert used == [4] * 6 and state.parallel == VMAP
    assert recorder.said == [
        f"out of memory with vmap chunk {a}: going on with vmap chunk {b}" for a, b in ((32, 16), (16, 8), (8, 4))
    ]
    assert checkpoint.load(tmp_path / "a" / "last.pt")["parallel"] == ["vmap", 4]


def test_out_of_memory_with_one_task_is_told_with_its_remedies(tmp_path: Path) -> None:
    def never(*_: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(UserError, match=r"out of memory with one task at a time. Lower data.queries"):
        trained(made(tmp_path, algo=Pull(never)))


FETCHES = ("item", "cpu", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__")


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every fetch from the device: by a method of Tensor, or by the operation under all of them."""
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if op is torch.ops.aten._local_scalar_dense.default:
                seen.append(str(op))
            return op(*args, **(kwargs or {}))

    def watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **keys: (seen.append(name), method(*args, **keys))[1]

    for name in FETCHES:
        monkeypatch.setattr(torch.Tensor, name, watched(name, getattr(torch.Tensor, name)))
    with Watch():
        yield seen


def test_the_watch_sees_what_it_must(fetches: list[str]) -> None:
    for fetch in (Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, bool, float, int):
        fetch(torch.ones(()))
    assert len(set(fetches)) == len(FETCHES) - 1 + 1  # all but __index__, and the operation itself


@pytest.mark.parametrize("norm_stats", ["batch", "support"])
@pytest.mark.parametrize("parallel", [Parallel("loop", 1), VMAP], ids=str)
def test_nothing_is_fetched_from_the_device_between_logs(
    algo_name: str,
    parallel: Parallel,
    norm_stats: str,
    case: Callable[..., Any],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """With plain SGD: torch's Adam counts its steps in a tensor that always lives on the CPU."""
    found = case(algo_name, "batch", norm_stats)
    watched: list[str] = []
    counts: list[int] = []

    class Counting(Recorder):
        def step(self, step: int) -> None:
            counts.append(len(watched))

    keys = {"log_every": 99, "val_every": 99, "steps": 4, "clip_value": 1.0, "clip_norm": 1.0}
    loop, state = for_algorithm(found, tmp_path, Counting(), **keys)
    state.optimizer = torch.optim.SGD(list(state.params.values()), lr=0.1, momentum=0.9)
    state.parallel = parallel
    watched = request.getfixturevalue("fetches")
    loop.run(state)
    assert counts == [0] * 4 and watched  # the end fetches, the steps do not


# The rhythm


def test_metrics_are_the_mean_of_the_steps_since_the_last_log(tmp_path: Path) -> None:
    """Losses 1, 2, ... 7, logged at 3 and 6 and at the end, which validates."""
    recorder = Recorder()
    algo = Pull(lambda call, slope, _: (slope, torch.tensor(float(call))))
    trained(made(tmp_path, algo=algo, tracker=recorder, steps=7, val_every=99))
    assert recorder.column("train/loss") == [(3, 2.0), (6, 5.0), (7, 7.0)]
    assert recorder.steps == [1, 2, 3, 4, 5, 6, 7]


def test_a_matrix_of_heads_is_handed_on_as_its_mean_and_told_as_the_mean_over_pairs(tmp_path: Path) -> None:
    """Cosines 0, 1, ... of steps 1 to 3; the third head met no other but in step 2, then at -1."""

    class Cosines:
        def meta_grad(self, params: dict[str, Tensor], sample: Tensor, parallel: Parallel) -> Any:
            counts.append(len(counts))
            cosine = torch.eye(3)
            cosine[0, 1] = cosine[1, 0] = counts[-1]
            cosine[2, :2] = cosine[:2, 2] = -1.0 if counts[-1] == 1 else math.nan
            return {"w": torch.zeros(2)}, {"loss": torch.tensor(1.0), "cosine": cosine, "a/weight": torch.tensor(0.5)}

    class Named(Noise):
        heads = dict.fromkeys("abc")

    counts: list[int] = []
    recorder = Recorder()
    trained(made(tmp_path, algo=Cosines(), sampler=Named(), tracker=recorder, steps=3, val_every=99))
    cells = [[1.0, 1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]
    assert recorder.matrices == [(3, "train/cosine", ["a", "b", "c"], cells)]
    assert recorder.column("train/cosine") == [(3, pytest.approx(-1 / 3))]
    assert recorder.column("train/a/weight") == [(3, 0.5)]


def test_one_head_has_no_pairs(tmp_path: Path) -> None:
    class Alone(Noise):
        heads = dict.fromkeys("a")

    class Cosine:
        def meta_grad(self, params: dict[str, Tensor], sample: Tensor, parallel: Parallel) -> Any:
            return {"w": torch.zeros(2)}, {"loss": torch.tensor(1.0), "cosine": torch.ones(1, 1)}

    recorder = Recorder()
    trained(made(tmp_path, algo=Cosine(), sampler=Alone(), tracker=recorder, steps=3, val_every=99))
    assert recorder.column("train/loss") and not recorder.column("train/cosine") and not recorder.matrices


def test_tasks_per_second_counts_the_tasks_there_are(
    case: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four groups, though the plan asks for 50 tasks; a clock that ticks once a second."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    recorder = Recorder()
    loop, state = for_algorithm(case("mtl"), tmp_path, recorder, tasks=50, log_every=1, steps=2, val_every=99)
    loop.run(state)
    *_, (_, speed) = recorder.column("train/tasks_per_s")
    assert speed == 2.0  # a step reads the clock twice


def test_it_validates_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    recorder = Recorder()
    trained(made(tmp_path, tracker=recorder, steps=5))
    assert [step for step, _ in recorder.column("val/accuracy")] == [2, 4, 5]


def scored(scores: list[float], name: str = "accuracy") -> Callable[[State], dict[str, Any]]:
    """Validations with the given scores, one after the other."""
    left = iter(scores)
    return lambda state: {name: {"mean": next(left), "ci95": 0.0, "tasks": 1}}


@pytest.mark.parametrize(
    ("scores", "name", "step"),
    [
        ([0.1, 0.5, 0.3], "accuracy", 4),
        ([0.5, 0.5, 0.1], "accuracy", 2),
        ([0.1, 0.2, 0.3], "accuracy", 6),
        ([0.5, 0.1, 0.3], "mse", 4),
    ],
)
def test_the_best_by_validation_is_kept_not_the_last(scores: list[float], name: str, step: int, tmp_path: Path) -> None:
    recorder, seen = Recorder(), {}
    validate = scored(scores, name)

    def watched(state: State) -> dict[str, Any]:
        seen[state.step] = state.params["w"].clone()
        return validate(state)

    state = trained(made(tmp_path, validate=watched, tracker=recorder))
    best = checkpoint.load(tmp_path / "best.pt")
    assert best["step"] == step == state.best["step"]  # type: ignore[index]
    assert best["params"]["w"].equal(seen[step])
    assert best["best"]["val"][name]["mean"] == scores[step // 2 - 1]
    assert checkpoint.load(tmp_path / "last.pt")["params"]["w"].equal(seen[6])


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_validation_without_a_number_ends_the_training(score: float, tmp_path: Path) -> None:
    loop = made(tmp_path, validate=scored([0.3, score, 0.1], "mse"))
    with pytest.raises(UserError, match=r"the validation's score is no number at step 4\. The last .*last\.pt"):
        trained(loop)
    assert [checkpoint.load(tmp_path / name)["step"] for name in ("last.pt", "best.pt")] == [2, 2]


def test_patience_ends_after_so_many_validations_without_a_better_one(tmp_path: Path) -> None:
    state = trained(made(tmp_path, validate=scored([0.1, 0.3, 0.2, 0.3, 0.9]), steps=99, patience=2))
    assert state.step == 8 and state.best["step"] == 4  # type: ignore[index]


def test_time_ends_a_training_with_a_validation(tmp_path: Path) -> None:
    recorder = Recorder()
    state = trained(made(tmp_path, tracker=recorder, steps=10**9, val_every=10**9, max_seconds=0.2))
    assert 0.2 <= state.seconds < 2 and state.step > 1
    assert [step for step, _ in recorder.column("val/accuracy")] == [state.step]
    assert (tmp_path / "best.pt").exists()


def test_time_counts_over_all_sessions(tmp_path: Path) -> None:
    state = fresh()
    state.seconds = 100.0
    trained(made(tmp_path, max_seconds=99.0), state)
    assert state.step == 0


def test_without_any_time_the_start_is_validated(tmp_path: Path) -> None:
    trained(made(tmp_path, max_seconds=0.0))
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 0


def test_a_finished_training_has_nothing_left_to_do(tmp_path: Path) -> None:
    trained(made(tmp_path))
    state, recorder = fresh(), Recorder()
    state.restore(checkpoint.load(tmp_path / "last.pt"))
    trained(made(tmp_path, tracker=recorder), state)
    assert not recorder.rows and not recorder.steps


def test_a_longer_plan_goes_on_from_a_finished_one(tmp_path: Path) -> None:
    trained(made(tmp_path / "a"))
    state = fresh()
    state.restore(checkpoint.load(tmp_path / "a" / "last.pt"))
    trained(made(tmp_path / "a", steps=10), state)
    assert state.params["w"].equal(trained(made(tmp_path / "b", steps=10)).params["w"])


def test_a_signal_ends_after_a_step_with_all_saved(tmp_path: Path) -> None:
    signals = iter([None, None, None, 2])
    state, recorder = fresh(), Recorder()
    with pytest.raises(Stopped) as stopped:
        trained(made(tmp_path, stop=lambda: next(signals), tracker=recorder, log_every=99, val_every=99), state)
    assert stopped.value.signal == 2 and isinstance(stopped.value, KeyboardInterrupt)
    saved = checkpoint.load(tmp_path / "last.pt")
    assert saved["step"] == 3 and saved["params"]["w"].equal(state.params["w"])
    assert [step for step, _ in recorder.column("train/loss")] == [3]


# Divergence


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_and_names_its_step(bad: float, tmp_path: Path) -> None:
    algo = Pull(lambda call, slope, loss: (slope, torch.tensor(bad) if call == 5 else loss))
    with pytest.raises(UserError, match=r"no number at step 5. The last good checkpoint is .*last.pt; lower optim.lr"):
        trained(made(tmp_path, algo=algo, steps=99))
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 4


def test_parameters_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    algo = Pull(lambda call, slope, _: (slope * (float("nan") if call == 4 else 1), torch.tensor(1.0)))
    with pytest.raises(UserError, match=r"no number at step 4. The last good checkpoint is .*last.pt"):
        trained(made(tmp_path, algo=algo))
    saved = checkpoint.load(tmp_path / "last.pt")
    assert saved["step"] == 2 and saved["params"]["w"].isfinite().all()
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 2


def test_divergence_before_the_first_checkpoint_says_that_there_is_none(tmp_path: Path) -> None:
    algo = Pull(lambda call, slope, loss: (slope, torch.tensor(float("nan"))))
    with pytest.raises(UserError, match=r"no number at step 1. No checkpoint had been saved yet"):
        trained(made(tmp_path, algo=algo))
