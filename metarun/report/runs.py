"""Finding runs, and reading what they left: result.json, .hydra/ and metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from metarun.errors import one_line

METRICS = {"accuracy": True, "mse": False, "loss": False}  # what a run is judged by, and whether more is better
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where PyYAML has it
BROKEN = (ValueError, KeyError, TypeError, AttributeError)  # what a file of another make raises when it is read


@dataclass(frozen=True)
class Score:
    """A mean over tasks with its 95% confidence interval."""

    mean: float
    ci95: float
    tasks: int


@dataclass(frozen=True)
class Run:
    """A finished run; `settings` is its whole config, flat, and `typed` the keys its user chose."""

    folder: Path
    written: float
    names: dict[str, str]  # algo, data, backbone
    seed: int
    metric: str
    test: Score
    val: Score | None
    steps: int | None
    seconds: float | None
    tasks_per_s: float | None
    protocol: dict[str, Any]
    settings: dict[str, str]
    typed: frozenset[str]


@dataclass(frozen=True)
class Missing:
    """A run that cannot be compared, and why."""

    place: Path
    why: str


def find(folders: Iterable[Path]) -> Iterator[Run | Missing]:
    """Every run in or below the folders, each once."""
    seen = set()
    for top in folders:
        for place, children, files in os.walk(top):
            children.sort()
            folder = Path(place)
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            results = sorted(
                f for f in files if f == "result.json" or (f.startswith("result-") and f.endswith(".json"))
            )
            yield from (_read(folder / file) for file in results)
            if not results and (".hydra" in children or "metrics.jsonl" in files):
                yield Missing(folder, "no result.json: still running, or killed")


def curve(run: Run) -> dict[int, float]:
    """The validation metric by step, as metrics.jsonl has it; torn lines are passed over."""
    points: dict[int, float] = {}
    try:
        lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return points
    for line in lines:
        try:
            row = json.loads(line)
            if f"val/{run.metric}" in row:
                points[int(row["step"])] = _number(row[f"val/{run.metric}"])
        except BROKEN:
            continue
    return points


def _read(file: Path) -> Run | Missing:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["status"] != "completed":
            return Missing(_place(file), _unfinished(record))
        return _run(file, record)
    except OSError as error:
        return Missing(file, f"unreadable: {error.strerror}")
    except BROKEN as error:
        told = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
        return Missing(file, f"unreadable: {told}")


def _run(file: Path, record: dict[str, Any]) -> Run:
    test = record["test"]
    metric = next((m for m in METRICS if m in test), None)
    if metric is None:
        raise ValueError(f"its test has none of {', '.join(METRICS)}")
    settings, typed = _settings(file.parent)
    again = file.stem.partition("-")[2]  # a repeated meta-test says in its name what was different
    if again:
        settings, typed = {**settings, "tested again": again}, typed | {"tested again"}
    val, cost = record.get("val") or {}, record.get("cost") or {}
    return Run(
        folder=file.parent,
        written=file.stat().st_mtime,
        names={key: str(record[key]) for key in ("algo", "data", "backbone")},
        seed=int(record["seed"]),
        metric=metric,
        test=_score(test[metric]),
        val=_score(val[metric]) if metric in val else None,
        steps=record.get("steps") or None,
        seconds=cost.get("train_s"),
        tasks_per_s=cost.get("tasks_per_s"),
        protocol=dict(record.get("protocol") or {}),
        settings=settings,
        typed=typed,
    )


def _settings(folder: Path) -> tuple[dict[str, str], frozenset[str]]:
    """The config of a run with its group choices, and which keys were typed; overrides stand in for a lost config."""
    overrides = _yaml(folder / "overrides.yaml") or []
    pairs = {o.lstrip("+~").partition("=")[0]: o.partition("=")[2] for o in map(str, overrides)}
    hydra = _yaml(folder / "hydra.yaml") or {}
    choices = hydra.get("hydra", {}).get("runtime", {}).get("choices", {})
    config = _yaml(folder / "config.yaml") or {}
    whole = {key: str(value) for key, value in choices.items() if not key.startswith("hydra/")}
    return {**(pairs if not config else {}), **whole, **dict(_flat(config))}, frozenset(pairs)


def _yaml(file: Path) -> Any:
    try:
        return yaml.load((file.parent / ".hydra" / file.name).read_text(encoding="utf-8"), LOADER)
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _flat(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "null" if value is None else str(value)


def _score(summary: dict[str, Any]) -> Score:
    return Score(_number(summary["mean"]), _number(summary.get("ci95")), int(summary.get("tasks") or 0))


def _number(value: float | None) -> float:
    """null in a file stands for NaN."""
    return math.nan if value is None else float(value)


def _place(file: Path) -> Path:
    return file.parent if file.name == "result.json" else file


def _unfinished(record: dict[str, Any]) -> str:
    """The status, and the last line of the error: that of a traceback names it."""
    lines = str(record.get("error") or "").strip().splitlines()
    return f"{record['status']}: {lines[-1]}" if lines else str(record["status"])
