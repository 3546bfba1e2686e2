"""What counts as fine: how a process may speak and end, and what a run must be afterwards."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from benchmarks.faults.place import Ended
from metarun.errors import UserError
from metarun.tracking import checkpoint

NOT_FOR_PEOPLE = re.compile(
    r"Traceback \(most recent|\w+(Error|Exception): |\w*Warning: |Exception ignored|terminate called|Fatal Python"
)
PREFIX = "metarun: "
STATES = ("completed", "interrupted", "failed")
KINDS = ("val", "train")  # of rows in metrics.jsonl
PASSED_OVER = "Files skipped"


class Short(NamedTuple):
    """What fell short."""

    expected: str
    came: str


def spoken(ended: Ended) -> list[Short]:
    """It ended by itself, and said nothing that only a programmer reads; on standard error metarun alone speaks."""
    found = [Short("an end by itself", ended.stopped)] if ended.stopped else []
    for text in (ended.out, ended.err):
        if bad := NOT_FOR_PEOPLE.search(text):
            found.append(Short("no traceback and no library's warning", _around(text, bad.start())))
    foreign = [line for line in ended.lines if not line.startswith(PREFIX)]
    if foreign and not found:
        found.append(Short(f"lines of standard error that start with '{PREFIX}'", foreign[0][:300]))
    return found


def refused(ended: Ended) -> list[Short]:
    """Exit code 2, and one line; what was passed over in a folder of images may be told before it."""
    found = spoken(ended)
    if ended.code != 2 and not ended.stopped:
        found.append(Short("exit code 2", f"exit code {ended.code}"))
    elif len([line for line in ended.lines if PASSED_OVER not in line]) != 1 and not found:
        found.append(Short("one line on standard error", f"{len(ended.lines)}: {ended.err[:300]!r}"))
    return found


def completed(ended: Ended) -> list[Short]:
    """Exit code 0."""
    found = spoken(ended)
    if ended.code and not ended.stopped:
        found.append(Short("exit code 0", f"exit code {ended.code}: {(ended.lines or ['nothing'])[-1][:300]}"))
    return found


def whole(run: Path, reference: Path) -> list[Short]:
    """What was written is whole, and its record is that of the same command elsewhere. A run without a checkpoint has
    nothing yet that could be lost."""
    found = []
    result = run / "result.json"
    if result.exists():
        content = _json(result)
        if not isinstance(content, dict) or content.get("status") not in STATES:
            found.append(Short("a result.json with a status", _beginning(result)))
    last = run / "checkpoints" / "last.pt"
    if not last.exists():
        return found
    for name in ("config.yaml", "overrides.yaml"):
        file = run / ".hydra" / name
        if _record(file) != _record(reference / ".hydra" / name):
            found.append(Short(f"a whole {name}", _beginning(file)))
    try:
        if checkpoint.load(last).get("best"):  # else nothing was validated yet
            checkpoint.load(last.with_name("best.pt"))
    except UserError as error:
        found.append(Short("whole checkpoints", str(error)))
    return found


def same(run: Path, reference: Path, logged: bool = True) -> list[Short]:
    """The run is completed with the reference's parameters and scores, to the bit; if `logged`, its rows are whole."""
    ours, theirs = _json(run / "result.json"), _json(reference / "result.json")
    if not isinstance(ours, dict) or ours.get("status") != "completed":
        state = ours.get("status") if isinstance(ours, dict) else None
        return [Short("a result.json that says completed", f"{state or _beginning(run / 'result.json')}")]
    found = [
        Short(f"{key} as in the unbroken run: {theirs[key]}", str(ours.get(key)))
        for key in ("test", "val", "steps", "params")
        if ours.get(key) != theirs[key]
    ]
    for name in ("last.pt", "best.pt"):
        found += _same_params(run / "checkpoints" / name, reference / "checkpoints" / name)
    return found + (rows(run, reference) if logged else [])


def _same_params(one: Path, other: Path) -> list[Short]:
    try:
        ours, theirs = checkpoint.load(one)["params"], checkpoint.load(other)["params"]
    except (UserError, KeyError) as error:
        return [Short(f"a {one.name} with parameters", str(error))]
    apart = [n for n in {**ours, **theirs} if n not in ours or n not in theirs or not torch.equal(ours[n], theirs[n])]
    if not apart:
        return []
    return [Short(f"the parameters of the unbroken run's {one.name}, to the bit", f"others in {', '.join(apart[:3])}")]


def rows(run: Path, reference: Path) -> list[Short]:
    """Every row of metrics.jsonl is there once; validation's are those of the reference. An interruption may add some
    of training."""
    ours, theirs = _rows(run), _rows(reference)
    if ours is None or theirs is None:
        return [Short("lines of JSON in metrics.jsonl", _beginning(run / "metrics.jsonl"))]
    found = []
    for kind in KINDS:
        own, wanted = ours[kind], theirs[kind]
        steps = [row["step"] for row in own]
        if steps != sorted(set(steps)):
            found.append(Short(f"each row of metrics.jsonl once ({kind})", f"steps {steps}"))
        if missing := sorted({row["step"] for row in wanted} - set(steps)):
            found.append(Short(f"all rows in metrics.jsonl ({kind})", f"none of steps {missing}"))
    if not found and ours["val"] != theirs["val"]:
        found.append(Short("the validations of the unbroken run in metrics.jsonl", "others"))
    return found


def _rows(run: Path) -> dict[str, list[dict[str, Any]]] | None:
    """The rows of metrics.jsonl by kind, without the times."""
    try:
        read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return {kind: [_of(row, kind) for row in read if any(n.startswith(kind) for n in row)] for kind in KINDS}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _of(row: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"step": row["step"], **{name: value for name, value in row.items() if name.startswith(kind)}}


def runs(folder: Path) -> list[Path]:
    """Folders below this one in which a run began."""
    marks = [*folder.rglob("result.json"), *folder.rglob(".hydra"), *folder.rglob("checkpoints")]
    return sorted({mark.parent for mark in marks})


def result(run: Path) -> dict[str, Any]:
    """What result.json says; nothing where it cannot be read."""
    content = _json(run / "result.json")
    return content if isinstance(content, dict) else {}


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _record(file: Path) -> Any:
    """What the run was started with, but for its place: None where it cannot be read."""
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if isinstance(content, dict):
        return {key: value for key, value in content.items() if key != "resume"}
    if isinstance(content, list):
        return sorted(word for word in map(str, content) if not word.startswith(("resume=", "hydra.")))
    return None


def _beginning(file: Path) -> str:
    try:
        return repr(file.read_bytes()[:200])
    except OSError as error:
        return str(error)


def _around(text: str, place: int) -> str:
    start = text.rfind("\n", 0, place) + 1
    lines = text[start:].splitlines()
    return " / ".join([lines[0], *lines[-1:]] if len(lines) > 1 else lines)[:400]
