"""Files of a run that were damaged since: checkpoints, the record of its config, its result and logs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml

from metarun.tracking import checkpoint

CHECKPOINTS = ("checkpoints/last.pt", "checkpoints/best.pt")
RECORDS = [f".hydra/{name}.yaml" for name in ("config", "overrides", "hydra")]
TWIN = "the other checkpoint in its place"
UNREADABLE = (*checkpoint.BROKEN, yaml.YAMLError, TypeError, AttributeError)
RECORDS += ["result.json", "metrics.jsonl", "run.log"]


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.canary),)


def damage(run: Path, random: Random, canary: Path) -> str:
    """Damages a file or two of the run, and says how."""
    told = []
    for _ in range(random.choice((1, 1, 1, 2))):
        name = random.choice(CHECKPOINTS if random.random() < 0.6 else RECORDS)
        kind = random.choice([*BYTES, *(CONTENT if name in CHECKPOINTS else TEXT)])
        file = run / name
        try:
            if kind in BYTES:
                file.write_bytes(BYTES[kind](file.read_bytes(), random))
            elif kind in CONTENT:
                CONTENT[kind](file, random, canary)
            else:
                TEXT[kind](file, random)
            told.append(f"{name}: {kind}")
        except UNREADABLE as error:  # after a first damage
            told.append(f"{name}: {kind}, which could not be done ({type(error).__name__})")
    return ", ".join(told)


def _flip(data: bytes, random: Random) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


BYTES: dict[str, Callable[[bytes, Random], bytes]] = {
    "one bit flipped": _flip,
    "one bit flipped ": _flip,  # twice as often: the hardest to see
    "cut": lambda data, random: data[: random.randrange(len(data) + 1)],
    "empty": lambda data, random: b"",
    "noise": lambda data, random: random.randbytes(200),
    "zeros at the end": lambda data, random: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "longer": lambda data, random: data + random.randbytes(20),
}


def _entries(file: Path, random: Random, change: Callable[[dict[str, Any], Random], object]) -> None:
    state = torch.load(file, weights_only=True)
    change(state, random)
    torch.save(state, file)


def _without(state: dict[str, Any], random: Random) -> None:
    del state[random.choice(sorted(state))]


def _foreign(state: dict[str, Any], random: Random) -> None:
    state[random.choice(sorted(state))] = random.choice([None, 5, "text", [], {}, torch.ones(3), float("nan")])


def _reshaped(state: dict[str, Any], random: Random) -> None:
    params = state["params"]
    name = random.choice(sorted(params))
    params[name] = random.choice([torch.ones(2, 2), params[name].double(), params[name] * float("nan"), "text"])


def _with_code(file: Path, random: Random, canary: Path) -> None:
    content = {"params": {}, "step": Code(canary)}
    if random.random() < 0.5:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))


def _twin(file: Path, random: Random, canary: Path) -> None:
    """The other checkpoint in its place, as after `cp best.pt last.pt`."""
    other = file.with_name({"last.pt": "best.pt", "best.pt": "last.pt"}[file.name])
    shutil.copy(other, file)


def _other(file: Path, random: Random, canary: Path) -> None:
    torch.save(random.choice([[], 5, torch.ones(3), {}, {"params": {"w": torch.ones(2)}}]), file)


def _replaced(file: Path, random: Random, canary: Path) -> None:
    file.unlink()
    kind = random.choice(("nothing", "folder", "link", "circle"))
    if kind == "folder":
        file.mkdir()
    elif kind != "nothing":
        file.symlink_to("nowhere" if kind == "link" else file.name)


CONTENT: dict[str, Callable[[Path, Random, Path], object]] = {
    "an entry gone": lambda file, random, canary: _entries(file, random, _without),
    "a foreign entry": lambda file, random, canary: _entries(file, random, _foreign),
    "a parameter of another kind": lambda file, random, canary: _entries(file, random, _reshaped),
    "code": _with_code,
    TWIN: _twin,
    "something else": _other,
    "no file": _replaced,
}


def _written(file: Path, random: Random) -> None:
    file.write_text(random.choice(["{}", "[]", "null", "5", "text", "{a: [", "- a\n- b\n", "\x00", "a: &x [*x]\n"]))


def _less(file: Path, random: Random) -> None:
    """Without some of its keys or lines."""
    read, write = (json.loads, json.dumps) if file.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    content = read(file.read_text()) if file.suffix in (".json", ".yaml") else file.read_text().splitlines()
    if isinstance(content, dict):
        for key in random.sample(sorted(content), min(2, len(content))):
            del content[key]
    else:
        content = random.sample(content, len(content) // 2)
    file.write_text(write(content) if file.suffix in (".json", ".yaml") else "\n".join(content))


TEXT: dict[str, Callable[[Path, Random], object]] = {
    "other content": _written,
    "keys or lines gone": _less,
    "gone": lambda file, random: file.unlink(),
    "without rights": lambda file, random: file.chmod(0),
}
