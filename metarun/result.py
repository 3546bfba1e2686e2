"""What result.json says: the parts of the record that a run fills in."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import metarun
from metarun.engine.device import peak_memory_mb
from metarun.maths.norm import BatchNorm
from metarun.types import Params

if TYPE_CHECKING:
    from metarun.build import Parts
    from metarun.loop import State

NORM = {
    "batch": "batch statistics of the query set (transductive)",
    "support": "batch statistics of the support set (inductive)",
}


def blank(choices: dict[str, str], seed: int) -> dict[str, Any]:
    """The record of a run that has not begun."""
    return {
        "status": "failed",
        "error": None,
        **{group: choices[group] for group in ("algo", "data", "backbone")},
        "device": None,
        "seed": seed,
        "steps": 0,
        "params": None,
        "test": None,
        "val": None,
        "protocol": None,
        "cost": None,
        "versions": {
            "metarun": metarun.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "git": _git(),
        },
    }


def facts(parts: Parts, params: Params, episodes: str) -> dict[str, Any]:
    """What is known before the first step."""
    batch_norm = any(isinstance(module, BatchNorm) for module in parts.net.module.modules())
    protocol = {
        "ways": parts.ways,
        "shots": parts.test.shots,
        "queries": parts.test.queries,
        "norm": NORM[parts.root.norm_stats] if batch_norm else "no batch statistics",
        **parts.test_data.protocol,
        "adapt_steps": parts.test.adapt_steps,
        "selection": "best validation",
        "ci95": "1.96 std / sqrt(tasks)",
        "episodes": episodes,
    }
    if parts.test.data:
        protocol["test_data"] = parts.test.data
    return {
        "device": str(parts.device),
        "params": sum(p.numel() for p in params.values()),
        "protocol": protocol,
    }


def progress(parts: Parts, state: State, ranks: int) -> dict[str, Any]:
    """What training reached and what it cost."""
    return {
        "steps": state.step,
        "val": state.best and {**state.best["val"], "step": state.best["step"]},
        "cost": {
            "train_s": round(state.seconds, 3),
            "tasks_per_s": round(state.tasks_per_s, 3),
            "peak_memory_mb": round(peak_memory_mb(parts.device), 1),
            "parallel": str(state.parallel),
            "compile": parts.root.compile,
            "precision": parts.root.precision,
            "ranks": ranks,
        },
    }


def header(record: dict[str, Any], parts: Parts, folder: Path, ranks: int) -> dict[str, str]:
    """The facts a person wants to see before training starts."""
    protocol = record["protocol"]
    task = f"{protocol['ways']}-way {protocol['shots']}-shot" if protocol["ways"] > 1 else f"{protocol['shots']}-shot"
    return {
        "algorithm": record["algo"],
        "data": f"{record['data']}, {task}, {protocol['split']}",
        "backbone": f"{record['backbone']}, {record['params']:,} parameters learned",
        "training": f"{parts.train.steps:,} steps of {parts.train.tasks} tasks, seed {record['seed']}",
        "device": record["device"] + (f", {ranks} ranks" if ranks > 1 else ""),
        "run": str(folder),
    }


def hparams(config: Mapping[str, Any], record: dict[str, Any]) -> dict[str, bool | int | float | str]:
    """What runs are compared by: the choices by name, and every number and switch of the config."""
    flat = {group: record[group] for group in ("algo", "data", "backbone")} | {"seed": record["seed"]}
    for section in ("algo", "data", "optim", "train"):
        for key, value in config[section].items():
            if isinstance(value, bool | int | float | str) and not key.startswith("_"):
                flat[f"{section}.{key}"] = value
    return flat


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
