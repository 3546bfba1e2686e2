"""What result.json says: the parts of the record that a run fills in."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import metarun
from metarun.build import Parts, drawn_by
from metarun.construct import COMPUTE_ONLY, PROTOCOL, marked, target_of
from metarun.engine.device import peak_memory_mb, pick
from metarun.evaluate import Summary, Verdict, transductive
from metarun.settings import Job, Root, Test, Train, Val
from metarun.state import State
from metarun.tracking.console import from_here
from metarun.types import Heads, Params, Span, ends, learned

NORM = {
    "batch": "batch statistics of the query set",
    "support": "batch statistics of the support set",
}
CI95 = (
    "1.96 std / sqrt(tasks), over the drawing of tasks; where they are drawn with replacement from a finite set of "
    "images, it does not cover the choice of those images"
)


def blank(job: Job) -> dict[str, Any]:
    """The record of a run that has not begun."""
    return {
        "status": "failed",
        "error": None,
        **{group: job.choices[group] for group in ("algo", "data", "backbone")},
        "device": None,
        "seed": job.config["seed"],
        "steps": 0,
        "params": None,
        "metric": None,
        "test": None,
        "val": None,
        "protocol": None,
        "cost": None,
        "aside": [],
        "versions": {
            "metarun": metarun.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "git": _git(),
        },
    }


def facts(job: Job, parts: Parts, params: Params) -> dict[str, Any]:
    """What is known before the first step."""
    protocol = {
        "ways": _span(job.test.ways),
        "shots": _span(job.test.shots),
        "queries": job.test.queries,
        "norm": NORM[job.root.norm_stats] if parts.tested(0).net.batch_norm else "no batch statistics",
        "transductive": transductive(parts.tested(0), params, parts.test),
        "input": "x".join(map(str, parts.test_data.shape)),
        **parts.test_data.protocol,
        "adapt_steps": job.test.adapt_steps,
        "selection": f"best validation {parts.data.metric}",
        "ci95": CI95,
        "episodes": parts.test.fingerprint,
        **_own(job, parts),
    }
    if job.test.data:
        protocol["test_data"] = _tested(job)
    return {
        "device": str(parts.device),
        "params": sum(p.numel() for p in learned(params).values()),
        "metric": parts.test_data.metric,
        "aside": _aside(job),
        "protocol": protocol,
    }


def _own(job: Job, parts: Parts) -> dict[str, Any]:
    """What a run may choose without being judged otherwise, by dotted keys: of its parts, of training, of selection."""
    by = drawn_by(job, parts.data)
    sizes = ("ways", "shots", "queries") if by == "episodes" else ("shots",)
    own = {"algo.trains_on": by, **{f"train.{key}": _span(getattr(job.train, key)) for key in sizes}}
    for group, section in job.sections.items():
        if group != "device":
            own |= marked(PROTOCOL, section, group)
    for step, keys in job.phases.items():
        own |= marked(PROTOCOL, keys, f"algo.phases.{step}", target_of(job.sections["algo"], "algo"))
    if job.test.data:  # else said of the test's
        own |= {f"train.{key}": value for key, value in parts.data.protocol.items()}
    own["train.content"] = f"sha256:{hashlib.sha256(parts.sampler.fingerprint.encode()).hexdigest()[:32]}"
    own["val.episodes"] = parts.val.fingerprint
    return own


def _span(size: Span) -> int | str:
    """One number, or `5- to 20` where each task has its own."""
    fewest, most = ends(size)
    return most if fewest == most else f"{fewest}- to {most}"


def _aside(job: Job) -> list[str]:
    """Keys of the config that say how the run was computed, not what it learned."""
    plain = {key: value for key, value in job.config.items() if not isinstance(value, Mapping)}
    sections = [("train", Train), ("val", Val), ("test", Test), ("device", pick)]
    found = partial(marked, COMPUTE_ONLY)
    chosen = [found(section, group) for group, section in job.sections.items() if group != "device"]
    return sorted({*found(plain, "", Root)}.union(*chosen, *(found(job.config[name], name, t) for name, t in sections)))


def progress(job: Job, parts: Parts, state: State) -> dict[str, Any]:
    """What training reached and what it cost."""
    return {
        "steps": state.step,
        "val": state.best and {**_nested(state.best["val"]), "step": state.best["step"]},
        "cost": {
            "train_s": round(state.seconds, 3),
            "tasks_per_s": round(state.tasks_per_s, 3),
            "peak_memory_mb": round(peak_memory_mb(parts.device), 1),
            "parallel": state.parallel and str(state.parallel),
            "compile": job.root.compile,
            "precision": job.root.precision,
            "ranks": job.team.size,
        },
    }


def test(verdict: Verdict) -> dict[str, Any]:
    """Scores at the end and by step; `adapt_steps` says how many steps were really taken, `diverged` in how many of
    the `tasks` they led to outputs that are no numbers."""
    lost, taken = verdict.diverged, max(verdict.by_step)
    rows = [{"step": step, **_nested(scores), "diverged": lost[step]} for step, scores in verdict.by_step.items()]
    counts = {"tasks": verdict.tasks, "diverged": lost[taken]}
    return {**_nested(verdict.scores), **counts, "adapt_steps": taken, "by_step": rows}


def _nested(scores: Mapping[str, Summary]) -> dict[str, Any]:
    """`digit/accuracy` becomes heads: digit: accuracy."""
    nested: dict[str, Any] = {name: value for name, value in scores.items() if "/" not in name}
    for name, value in scores.items():
        head, _, metric = name.rpartition("/")
        if head:
            nested.setdefault("heads", {}).setdefault(head, {})[metric] = value
    return nested


def header(job: Job, parts: Parts, record: dict[str, Any]) -> dict[str, str]:
    """The facts a person wants to see before training starts."""
    protocol, ranks = record["protocol"], job.team.size
    kind = [f"{protocol['ways']}-way"] if protocol["ways"] != 1 else []
    task = " ".join([*kind, f"{protocol['shots']}-shot"]) if protocol["shots"] else "nothing to adapt to"
    tasks = ", ".join(["1 task" if job.train.tasks == 1 else f"{job.train.tasks} tasks", *ways(parts).values()][:2])
    tested = f"{task}, {protocol['split']}"
    data = {"data": f"{record['data']}, {tested}"}
    if job.test.data:
        split = parts.data.protocol["split"]
        data = {"data": f"{record['data']}, {split}", "test data": f"{protocol['test_data']}, {tested}"}
    return {
        "algorithm": record["algo"],
        **data,
        "backbone": f"{record['backbone']}, {record['params']:,} parameters learned",
        **_source(job, parts),
        "training": f"{job.train.steps:,} steps of {tasks}, seed {record['seed']}",
        "device": record["device"] + (f", {ranks} ranks" if ranks > 1 else ""),
        "run": from_here(job.folder),
    }


def _source(job: Job, parts: Parts) -> dict[str, str]:
    """What the run takes over from another."""
    if job.source is None or parts.source is None:
        return {}
    names, layer = job.source["run"]["choices"], "fits" if parts.source.known else "is for other classes"
    told = f"{names['algo']} on {names['data']}, {names['backbone']}; its output layer {layer}"
    return {"source": f"{from_here(Path(str(job.course.source)))}: {told}"}


def ways(parts: Parts) -> dict[str, str]:
    """What accuracies are of in `train`, and in `val` and `test`, where that differs: `128-way` and `5-way`."""
    train, tested = (_ways(sampler.heads) for sampler in (parts.sampler, parts.test.sampler))
    return {"train": train, "val": tested, "test": tested} if train != tested else {}


def _ways(heads: Heads) -> str:
    sizes = sorted({head.size for head in heads.values() if head.kind == "class"})
    return "- to ".join(str(size) for size in sizes[:1] + sizes[1:][-1:]) + "-way" if sizes else ""


def _tested(job: Job) -> str:
    """The name of the data set that `test.data` names, and where that is the training data's, what tells them apart."""
    name, test = str(job.test.data), job.test
    if name != job.choices["data"]:
        return name
    root = [Path(test.root).absolute().name] if test.root else []
    return " ".join([name, *root, *(f"{key}={value}" for key, value in (test.keys or {}).items())])


def _git() -> str | None:
    """The commit of the checkout metarun runs from, if it does."""
    home = Path(metarun.__file__).parent.parent
    if not (home / ".git").exists():
        return None
    command = ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
