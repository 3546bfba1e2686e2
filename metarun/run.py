"""One run from its config to its result: build, train, meta-test, write."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from metarun import result
from metarun.build import Parts, build
from metarun.engine.choice import candidates, fastest, named
from metarun.engine.compile import Traced
from metarun.engine.device import keep_freed_memory
from metarun.engine.lock import locked
from metarun.engine.mapping import Parallel
from metarun.engine.ranks import Lost, Team
from metarun.engine.remembered import remembered, situation
from metarun.errors import UserError
from metarun.evaluate import AT_ONCE, Verdict, evaluate, worth
from metarun.identity import hold_choices, hold_data, identity
from metarun.loop import Loop, Plan, Stopped, Tracker
from metarun.metrics import scores
from metarun.settings import Job
from metarun.state import ENTRIES, State, groups, load_params
from metarun.tracking import checkpoint
from metarun.tracking.figures import episode_picture
from metarun.tracking.jsonl import write_json
from metarun.tracking.trackers import Trackers
from metarun.types import Params, ends

RECORD, RESULT, LOG = ".hydra", "result.json", "run.log"  # in a run's folder

log = logging.getLogger("metarun")


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
        _, came = self.team.agreed(0.0, self.came)
        if came is not None:
            raise Stopped(came)


def run(job: Job) -> dict[str, Any]:
    """Trains and meta-tests. However it ends, the result file tells."""
    team = job.team
    signals = Signals(team)
    keep_freed_memory()
    record = result.blank(job)
    with _alone(job), _recorded(job, record):
        saved = _load(job, _newest(job.folder) or "last.pt") if job.resumes else None
        if saved and not job.only_tests:
            hold_choices(job, saved.get("run"))
        with team.in_turn():
            parts = build(job)
        state = _start(job, parts, saved)
        rehearse(parts, state)
        record |= result.facts(job, parts, state.params)
        if job.resumes:
            record |= result.progress(job, parts, state)
        trackers = _trackers(job, state)
        with trackers.closing(record):
            _begin(job, parts, trackers, record)
            if not job.only_tests:
                _train(job, parts, state, trackers, signals, record)
            signals.check()  # a signal during the last step
            signals.patient = False
            record["test"] = result.test(_meta_test(job, parts, state, trackers))
            _check_score(job, parts, record)
            record["status"] = "completed"
            trackers.result(record, job.result_file if job.only_tests else None)
    return record


@contextmanager
def _alone(job: Job) -> Iterator[None]:
    """Nobody else works in the run's folder meanwhile; and what never began there leaves nothing."""
    if job.team.rank:
        yield
        return

    def refuse(holder: str) -> None:
        raise UserError(f"{job.folder} is in use: {holder}. Wait until that has ended, or take another folder.")

    with locked(job.folder / ".lock", refuse):
        try:
            yield
        finally:
            if not any((job.folder / name).exists() for name in (RECORD, RESULT)):
                (job.folder / LOG).unlink(missing_ok=True)


def _trackers(job: Job, state: State) -> Trackers:
    """Who is told. From here on there is a run, which the files in its folder tell how to resume."""
    if job.only_tests or job.team.rank:
        return Trackers.of_test(job.train.steps, job.folder)
    if not job.resumes:
        for old in job.folder.glob("events.out.tfevents.*"):  # of a run that was killed before there was a checkpoint
            old.unlink()
    job.remember()
    validated = state.validated == state.step
    return Trackers.of_training(job.train.steps, job.folder, state.step, job.train.max_seconds, validated)


@contextmanager
def _recorded(job: Job, record: dict[str, Any]) -> Iterator[None]:
    """Writes the result file of a run that began, however it ends, and of one that a bug kept from beginning."""
    quiet, bug = job.only_tests or job.team.rank, False
    handler = logging.NullHandler() if quiet else logging.FileHandler(job.folder / LOG, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    except Stopped as stopped:
        record["status"] = "interrupted"
        stopped.folder = _saved(job.folder)
        raise
    except UserError as error:
        record["error"] = str(error)
        if isinstance(error, Lost):
            error.folder = _saved(job.folder)
        raise
    except Exception:
        record["error"], bug = traceback.format_exc(), True
        raise
    finally:
        began = record["params"] is not None
        if record["error"] is not None:
            log.error("%s", record["error"])
        if job.team.rank == 0 and (began or (bug and not job.resumes)):
            write_json(job.result_file, record)
        log.removeHandler(handler)
        handler.close()


def _saved(folder: Path) -> Path | None:
    """The folder, if a run can go on there."""
    return folder if _newest(folder) else None


def _newest(folder: Path) -> str | None:
    """The checkpoint to go on from: a full disk may have room for the best one alone, which is written first."""
    return next((name for name in ("last.pt", "best.pt") if (folder / "checkpoints" / name).exists()), None)


def _begin(job: Job, parts: Parts, trackers: Trackers, record: dict[str, Any]) -> None:
    """What is shown before the first step."""
    texts = {"config": json.dumps(job.config, indent=2), "protocol": json.dumps(record["protocol"], indent=2)}
    picture = None
    if len(parts.data.shape) == 3 and job.test.shots and not job.only_tests:
        exam = parts.val.first()
        episode = exam.sampler.gather(exam.draw)
        picture = episode_picture(episode.support.x[0].cpu(), episode.query.x[0].cpu(), ends(job.test.ways)[1])
    trackers.begin(result.header(job, parts, record), texts, job.hparams(), picture, result.ways(parts))
    if job.resumes and not job.only_tests:
        trackers.say(f"going on from step {record['steps']:,} of {job.train.steps:,}")


def _start(job: Job, parts: Parts, saved: dict[str, Any] | None) -> State:
    """The state to train from: a fresh one, or that of the run to resume."""
    state = fresh_state(job, parts)
    if saved:
        hold_data(job, parts, saved.get("run"))
        state.restore(saved)
        state.parallel = state.parallel and replace(state.parallel, team=job.team)
    return state


def _load(job: Job, name: str) -> dict[str, Any]:
    """A checkpoint of the run, on all ranks."""
    return job.team.broadcast(lambda: checkpoint.load(job.folder / "checkpoints" / name, ENTRIES))


def fresh_state(job: Job, parts: Parts) -> State:
    """Before the first step."""
    params = first_params(job, parts)
    return State(params, parts.optimizer(groups(parts.algo(0), params)))


def first_params(job: Job, parts: Parts) -> Params:
    """θ as the seed draws it: on the CPU, so that it is the same on every device."""
    fresh = parts.algo(0).init(torch.Generator().manual_seed(job.root.seed))
    return {name: p.to(parts.device) for name, p in fresh.items()}


def rehearse(parts: Parts, state: State) -> None:
    """One task is adapted to and predicted before hours of training: what cannot be tested is told now."""
    exam = replace(parts.test.first(), steps=min(1, parts.test.steps), marks=[1])
    evaluate(parts.tested(state.step), state.params, exam, Parallel("loop", 1), say=log.info)


def _train(job: Job, parts: Parts, state: State, trackers: Trackers, signals: Signals, record: dict[str, Any]) -> None:
    def between(done: int, total: int) -> None:
        signals.check()
        trackers.part("validation", done, total)

    def validate(state: State) -> dict[str, Any]:
        parallel = for_evaluation(state.parallel, parts.device, job.team)
        found = evaluate(parts.tested(state.step), state.params, parts.val, parallel, between, trackers.say)
        if found.diverged[max(found.diverged)] == found.tasks:
            trackers.say(f"adaptation diverged in all {found.tasks} tasks of this validation")
        return found.scores

    loop = loop_of(job, parts, trackers, job.folder / "checkpoints", validate)
    signals.patient = True
    try:
        replace(loop, stop=lambda: signals.came).run(state)
    finally:
        record |= result.progress(job, parts, state)
    if job.resumes:
        trackers.say(f"trained for {timedelta(seconds=round(state.seconds))} in all sessions")


def loop_of(
    job: Job, parts: Parts, tracker: Tracker, folder: Path, validate: Callable[[State], dict[str, Any]]
) -> Loop:
    """The training that the job names, which nobody stops."""
    return Loop(
        algo=parts.trained,
        sampler=parts.sampler,
        validate=validate,
        score=partial(worth, parts.data.metric, len(parts.val.tasks)),
        factor=parts.factor,
        choose=partial(choose, job, parts, tracker),
        stop=lambda: None,
        plan=Plan(
            seed=job.root.seed,
            steps=job.train.steps,
            tasks=job.train.tasks,
            lr=job.outer.lr,
            max_seconds=job.train.max_seconds,
            clip_value=job.train.clip_value,
            clip_norm=job.train.clip_norm,
            log_every=job.train.log_every,
            val_every=job.val.every,
            patience=job.val.patience,
        ),
        tracker=tracker,
        folder=folder,
        identity=identity(job, parts),
        device=parts.device,
        team=job.team,
    )


def choose(job: Job, parts: Parts, tracker: Tracker, state: State, sample: Any) -> Parallel:
    """How to map tasks: as told, or as measured on the first meta-batch, now or by an earlier run."""
    root, tasks = job.root, len(tree_leaves(sample)[0])
    unrolled = isinstance(parts.trained(state.step), Traced)
    if root.parallel in ("loop", "vmap"):
        return named(root.parallel, root.chunk, tasks, unrolled)
    algo, offered = parts.algo(state.step), candidates(tasks, root.chunk, parts.device, unrolled)
    settings = {"precision": root.precision, "compile": root.compile, "ranks": job.team.size}
    key = situation(algo, state.params, sample, offered, parts.device, **settings)
    measure = partial(fastest, algo, state.params, sample, offered, parts.device)
    best, told = remembered(key, offered, measure, anew=root.parallel == "measure")
    tracker.say(f"parallel: {told}")
    return best


def for_evaluation(parallel: Parallel | None, device: torch.device, team: Team) -> Parallel:
    """Evaluation keeps no graph, so it may take more tasks at a time than training; not where the loop had to win."""
    if parallel is not None and parallel.mode == "loop":
        return parallel
    chunk = AT_ONCE if device.type != "cpu" else max(16, 4 * parallel.chunk if parallel else 0)
    return Parallel("vmap", min(AT_ONCE, chunk), team)


def _meta_test(job: Job, parts: Parts, state: State, trackers: Trackers) -> Verdict:
    """The checkpoint that validation chose, on the fixed test episodes."""
    best = _load(job, "best.pt")
    params = {name: torch.empty_like(p) for name, p in state.params.items()}
    load_params(params, best["params"])
    parallel = for_evaluation(state.parallel, parts.device, job.team)
    between = partial(trackers.part, "meta-test")
    return evaluate(parts.tested(best["step"]), params, parts.test, parallel, between, together=True)


def _check_score(job: Job, parts: Parts, record: dict[str, Any]) -> None:
    """A meta-test that ended in numbers on no task, or whose score is none, is no success."""
    name, test = parts.test_data.metric, record["test"]
    if test["diverged"] == test["tasks"] or not math.isfinite(scores(test)[name].mean):
        raise UserError(
            f"the meta-test's {name} is no number: adaptation diverged on every task. "
            "Lower optim.lr, algo.inner_lr or test.adapt_steps."
        )
