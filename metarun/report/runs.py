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
from metarun.metrics import TABLE, Score, scores

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where PyYAML has it
BROKEN = (ValueError, KeyError, TypeError, AttributeError)  # what a file of another make raises when it is read


@dataclass(frozen=True)
class Run:
    """A finished run.

    `settings` is its config, flat, without the seed and what its result says changes nothing that is measured; `typed`
    are the keys that its user chose, `metric` the name of the score that it is judged by. `tested` names the data set
    of the meta-test. Of a repeated meta-test (`again`) there is no validation: that was under the run's own protocol.
    """

    folder: Path
    written: float
    names: dict[str, str]  # algo, data (that was trained on), backbone
    tested: str
    again: bool
    seed: int
    metric: str
    scores: dict[str, Score]  # of the meta-test
    val: Score | None
    adapt_steps: int | None  # that were really taken
    steps: int | None
    seconds: float | None
    tasks_per_s: float | None
    memory_mb: float | None
    protocol: dict[str, Any]  # how it was judged
    silent: frozenset[str]  # settings that are told whether typed or not
    diverged: int  # tasks of the meta-test
    settings: dict[str, str]
    typed: frozenset[str]

    @property
    def test(self) -> Score:
        return self.scores[self.metric]


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


def curves(run: Run) -> dict[str, dict[int, float]]:
    """metric -> step -> its value at validation, as metrics.jsonl has it; torn lines are passed over.

    Validation is on the data that the run was trained on. A repeated meta-test has not trained, and so has no curve.
    """
    found: dict[str, dict[int, float]] = {}
    if run.again:
        return found
    try:
        lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            row = json.loads(line)
            for tag in row:
                if tag.startswith("val/"):
                    value = math.nan if row[tag] is None else float(row[tag])
                    found.setdefault(tag.removeprefix("val/"), {})[int(row["step"])] = value
        except BROKEN:
            continue
    return found


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
    test, told = scores(record["test"]), dict(record.get("protocol") or {})
    protocol = {key: value for key, value in told.items() if "." not in key}
    own = {key: str(value) for key, value in told.items() if "." in key}  # chosen without being judged otherwise
    metric = record.get("metric") or next((name for name in TABLE if name in test), None)
    if metric not in test:
        raise ValueError(f"its test has no {metric or ', '.join(TABLE)}")
    settings, typed = _settings(file.parent)
    settings = _without(settings, {"seed", *record.get("aside", ())}) | own
    again = file.stem.partition("-")[2]  # a repeated meta-test says in its name what was different
    if again:
        settings, typed = {**settings, "tested again": again}, typed | {"tested again"}
    val, cost = {} if again else record.get("val") or {}, record.get("cost") or {}
    names = {key: str(record[key]) for key in ("algo", "data", "backbone")}
    return Run(
        folder=file.parent,
        written=file.stat().st_mtime,
        names=names,
        tested=str(protocol.get("test_data") or names["data"]),
        again=bool(again),
        seed=int(record["seed"]),
        metric=metric,
        scores=test,
        val=scores(val).get(metric),
        adapt_steps=record["test"].get("adapt_steps", protocol.get("adapt_steps")),
        steps=record.get("steps") or None,
        seconds=cost.get("train_s"),
        tasks_per_s=cost.get("tasks_per_s"),
        memory_mb=cost.get("peak_memory_mb"),
        protocol=protocol,
        silent=frozenset(key for key, value in own.items() if not value.startswith("sha256:")),
        diverged=record["test"].get("diverged") or 0,
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


def _without(settings: dict[str, str], aside: set[str]) -> dict[str, str]:
    """The settings that are not aside, and no choice of a section (device=cpu) of which nothing is left."""
    kept = {key: value for key, value in settings.items() if key not in aside}
    gone = _sections(settings) - _sections(kept)
    return {key: value for key, value in kept.items() if key not in gone}


def _sections(keys: Iterable[str]) -> set[str]:
    return {key.partition(".")[0] for key in keys if "." in key}


def _place(file: Path) -> Path:
    return file.parent if file.name == "result.json" else file


def _unfinished(record: dict[str, Any]) -> str:
    """The status, and the last line of the error: that of a traceback names it."""
    lines = str(record.get("error") or "").strip().splitlines()
    return f"{record['status']}: {lines[-1]}" if lines else str(record["status"])
