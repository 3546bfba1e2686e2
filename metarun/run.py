"""One run from its config to its result: build, train, meta-test, write."""

from __future__ import annotations

import json
import logging
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from metarun import result
from metarun.build import Config, Parts, build
from metarun.construct import construct, prepared
from metarun.engine.choice import by_hand, candidates, fastest
from metarun.engine.compile import Compiled
from metarun.engine.device import keep_freed_memory
from metarun.engine.mapping import Parallel
from metarun.engine.ranks import ALONE, Lost, Team
from metarun.errors import UserError
from metarun.evaluate import PIECE, episodes_hash, evaluate
from metarun.loop import Loop, Plan, State, Stopped, Tracker, load_params
from metarun.tracking import checkpoint
from metarun.tracking.figures import episode_picture
from metarun.tracking.jsonl import write_json
from metarun.tracking.trackers import Trackers
from metarun.types import Draw, Params, Sampler

log = logging.getLogger("metarun")


@dataclass(frozen=True)
class Order:
    """What the command line asked for: the config, its choices by name, and where the run lives."""

    config: Config
    choices: dict[str, str]  # group -> choice
    test_data: Config | None
    folder: Path
    label: str  # of a repeated meta-test's result file
    remember: Callable[[], None]  # keeps the config of a resumed run, once it is known to go on
    team: Team = ALONE


class Signals:
    """SIGINT and SIGTERM: while `patient`, the first one is only noted, so that a meta-step ends before the run."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.came: int | None = None  # to this rank
        self.patient = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.came is not None or not self.patient:
            raise Stopped(number, at_once=True)
        self.came = number
        if self.team.rank == 0:
            os.write(2, b"\nmetarun: stopping after this step; once more stops at once.\n")

    def check(self) -> None:
        _, came = self.team.agree(0.0, self.came)
        if came is not None:
            raise Stopped(came)


def run(order: Order) -> dict[str, Any]:
    """Trains and meta-tests. However it ends, the result file tells."""
    team = order.team
    signals = Signals(team)
    keep_freed_memory()
    record = result.blank(order.choices, order.config["seed"])
    with _recorded(order, record):
        with team.in_turn():
            parts = build(order.config, order.test_data)
        state = _start(order, parts)
        draw = _draw(parts.test_sampler, parts.test.tasks, parts.test.seed)
        record |= result.facts(parts, state.params, episodes_hash(parts.test_sampler, draw))
        if parts.root.resume is not None:
            record |= result.progress(parts, state, team.size)
        if parts.test.only or team.rank:
            trackers = Trackers.of_test(parts.train.steps, order.folder)
        else:
            if parts.root.resume is not None:
                order.remember()
            trackers = Trackers.of_training(parts.train.steps, order.folder, state.step)
        with trackers.closing(record):
            _begin(order, parts, trackers, record)
            if not parts.test.only:
                _train(order, parts, state, trackers, signals, record)
            signals.check()  # a signal during the last step
            signals.patient = False
            record["test"] = _meta_test(order, parts, state, draw)
            record["status"] = "completed"
            trackers.result(record)
    return record


@contextmanager
def _recorded(order: Order, record: dict[str, Any]) -> Iterator[None]:
    """Writes the result file at the end, come what may; a run that could not be resumed keeps its old one."""
    only = order.config["test"]["only"]
    handler = logging.NullHandler() if only or order.team.rank else logging.FileHandler(order.folder / "run.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    path = order.folder / (f"result-{order.label}.json" if only else "result.json")
    try:
        yield
    except Stopped as stopped:
        record["status"] = "interrupted"
        stopped.folder = _saved(order.folder)
        raise
    except UserError as error:
        record["error"] = str(error)
        if isinstance(error, Lost):
            error.folder = _saved(order.folder)
        raise
    except Exception:
        record["error"] = traceback.format_exc()
        raise
    finally:
        if record["error"] is not None:
            log.error("%s", record["error"])
        if order.team.rank == 0 and (order.config["resume"] is None or record["params"] is not None):
            write_json(path, record)
        log.removeHandler(handler)
        handler.close()


def _saved(folder: Path) -> Path | None:
    """The folder, if a run can go on there."""
    return folder if (folder / "checkpoints" / "last.pt").exists() else None


def _begin(order: Order, parts: Parts, trackers: Trackers, record: dict[str, Any]) -> None:
    """What is shown before the first step."""
    texts = {"config": json.dumps(order.config, indent=2), "protocol": json.dumps(record["protocol"], indent=2)}
    picture = None
    if len(parts.data.shape) == 3 and not parts.test.only:
        episode = parts.val_sampler.gather(_draw(parts.val_sampler, 1, parts.val.seed))
        picture = episode_picture(episode.support.x[0].cpu(), episode.query.x[0].cpu(), parts.ways)
    facts = result.header(record, parts, order.folder, order.team.size)
    trackers.begin(facts, texts, result.hparams(order.config, record), picture)


def _start(order: Order, parts: Parts) -> State:
    """The state to train from: a fresh one, or that of the run to resume."""
    state = fresh_state(order.config, parts)
    if parts.root.resume is not None:
        state.restore(order.team.lead(lambda: checkpoint.load(order.folder / "checkpoints" / "last.pt")))
    return state


def fresh_state(config: Config, parts: Parts) -> State:
    """Before the first step."""
    params = first_params(parts)
    return State(params, construct(config["optim"], "optim", params=list(params.values())))


def first_params(parts: Parts) -> Params:
    """θ as the seed draws it: on the CPU, so that it is the same on every device."""
    fresh = parts.algo.init(torch.Generator().manual_seed(parts.root.seed))
    return {name: p.to(parts.device) for name, p in fresh.items()}


def _draw(sampler: Sampler, tasks: int, seed: int) -> Draw:
    """Fixed tasks: drawn on the CPU, where a seed means the same on every machine."""
    return sampler.draw(tasks, torch.Generator().manual_seed(seed))


def _train(
    order: Order, parts: Parts, state: State, trackers: Tracker, signals: Signals, record: dict[str, Any]
) -> None:
    val_draw = _draw(parts.val_sampler, parts.val.tasks, parts.val.seed)
    steps = parts.test.adapt_steps

    def validate(state: State) -> dict[str, Any]:
        parallel = for_evaluation(state.parallel, parts.device)
        task = (parts.eval_algo, state.params, parts.val_sampler, val_draw, steps, parallel)
        return evaluate(*task, (steps,), signals.check, order.team)

    loop = loop_of(order.config, parts, trackers, order.folder / "checkpoints", validate)
    signals.patient = True
    try:
        replace(loop, stop=lambda: signals.came, team=order.team).run(state)
    finally:
        record |= result.progress(parts, state, order.team.size)


def loop_of(
    config: Config, parts: Parts, tracker: Tracker, folder: Path, validate: Callable[[State], dict[str, Any]]
) -> Loop:
    """The training that the config names, of one process that nobody stops."""
    return Loop(
        algo=Compiled(parts.algo) if parts.root.compile else parts.algo,
        sampler=parts.sampler,
        validate=validate,
        factor=prepared(config["schedule"], "schedule", "step", "steps"),
        choose=partial(choose, parts, tracker),
        stop=lambda: None,
        plan=Plan(
            seed=parts.root.seed,
            steps=parts.train.steps,
            tasks=parts.train.tasks,
            lr=config["optim"]["lr"],
            max_seconds=parts.train.max_seconds,
            clip_value=parts.train.clip_value,
            clip_norm=parts.train.clip_norm,
            log_every=parts.train.log_every,
            val_every=parts.val.every,
            patience=parts.val.patience,
        ),
        tracker=tracker,
        folder=folder,
        device=parts.device,
    )


def choose(parts: Parts, trackers: Tracker, state: State, sample: Any) -> Parallel:
    """How to map tasks: as told, or as measured on the first meta-batch."""
    root, tasks = parts.root, len(tree_leaves(sample)[0])
    if root.parallel != "auto":
        return by_hand(root.parallel, root.chunk, tasks, root.compile)
    ways = candidates(tasks, root.chunk, parts.device, root.compile)
    best, seconds = fastest(parts.algo, state.params, sample, ways, parts.device)
    measured = ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in seconds.items())
    trackers.say(f"parallel: {best} is fastest here ({measured} per meta-step)")
    return best


def for_evaluation(parallel: Parallel | None, device: torch.device) -> Parallel:
    """Evaluation keeps no graph, so it may take more tasks at a time than training; not where the loop had to win."""
    if parallel is not None and parallel.mode == "loop":
        return parallel
    chunk = PIECE if device.type != "cpu" else max(16, 4 * parallel.chunk if parallel else 0)
    return Parallel("vmap", min(PIECE, chunk))


def _meta_test(order: Order, parts: Parts, state: State, draw: Draw) -> dict[str, Any]:
    """The checkpoint that validation chose, on the fixed test episodes."""
    best = order.team.lead(lambda: checkpoint.load(order.folder / "checkpoints" / "best.pt"))
    params = {name: torch.empty_like(p) for name, p in state.params.items()}
    load_params(params, best["params"])
    parallel = for_evaluation(state.parallel, parts.device)
    steps = parts.test.adapt_steps
    return evaluate(parts.eval_algo, params, parts.test_sampler, draw, steps, parallel, team=order.team)
