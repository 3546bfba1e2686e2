"""The finished run that `algo.source` names: its checkpoint, and the network that it left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from metarun.construct import PLACE, construct, marked
from metarun.engine.room import Room
from metarun.errors import UserError, one_line
from metarun.maths.net import HEAD, Net
from metarun.maths.new_head import LAYER, WEIGHT
from metarun.maths.source import Pretrained
from metarun.settings import Job
from metarun.state import ENTRIES
from metarun.tracking import checkpoint
from metarun.types import MEMORY, Data, Heads

TOLD = {"config": dict, "choices": dict, "shape": list, "data": dict}  # what a checkpoint has to tell of its run


def opened(folder: Path, place: str) -> dict[str, Any]:
    """The checkpoint of a run that its validation chose; `place` is what errors call the folder."""
    file = folder / "checkpoints" / "best.pt"
    if not file.is_file():
        if (folder / ".hydra").is_dir():
            remedy = f"Go on with it, as metarun resume={folder}, or name another"
            raise UserError(f"{place} has no checkpoint yet: there is no {file}. {remedy}.")
        raise UserError(f"{place} is no run: there is no {file}. Name the directory where a finished run lies.")
    saved = checkpoint.load(file, ENTRIES)
    run = saved.get("run")
    whole = isinstance(run, dict) and all(isinstance(run.get(name), kind) for name, kind in TOLD.items())
    if not whole or "backbone" not in saved["run"]["config"]:
        raise UserError(f"{place}: its checkpoint does not tell what its run is. Train it anew.")
    return saved


def pretrained(job: Job, data: Data, heads: Heads, device: torch.device) -> Pretrained:
    """The network of the run that the job names as its source; `heads` are those that this job trains."""
    assert job.source is not None
    place = f"algo.source={job.course.source}"
    try:
        return _built(place, job.source, data, heads, device, _same(job, job.source["run"], data, heads))
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{place}: its checkpoint does not tell what its run is ({one_line(error)}).") from error


def _built(
    place: str, saved: Mapping[str, Any], data: Data, heads: Heads, device: torch.device, same: bool
) -> Pretrained:
    run = saved["run"]
    if list(run["shape"]) != list(data.shape):
        raise UserError(
            f"{place} was trained on inputs of shape {list(run['shape'])}, and the data of this run has "
            f"{list(data.shape)}. Take data of that shape, or another source."
        )
    entries = {name.removeprefix(MEMORY): p for name, p in saved["params"].items()}  # a frozen trunk is a trunk too
    with Room(place, "Name a smaller one"):
        net = network(run, heads, f"{place}: backbone").to(device)
    expected = net.init(torch.Generator().manual_seed(0))
    trunk = {name.removeprefix(MEMORY): p.shape for name, p in expected.items() if name not in LAYER}
    if any(name not in entries or entries[name].shape != shape for name, shape in trunk.items()):
        raise UserError(f"{place}: what it trained is not its backbone alone, as algo.single_task=true. Name another.")
    own = {name: entries[name] for name in trunk}
    layer = {name: p for name, p in entries.items() if name.startswith(HEAD)}
    if WEIGHT in layer and layer[WEIGHT].shape == expected[WEIGHT].shape and same:
        return Pretrained(net, {**own, **layer}, True, data.shape)
    return Pretrained(replace(net, trained={}), own, False, data.shape)


def network(run: Mapping[str, Any], heads: Heads, prefix: str) -> Net:
    """The network of a run as it is tested, for these heads; `prefix` stands before a key of it in errors."""
    make = partial(construct, run["config"]["backbone"], prefix, shape=tuple(run["shape"]))
    return Net.build(make, heads, run["config"]["norm_stats"]).testing(heads)


def _same(job: Job, run: Mapping[str, Any], data: Data, heads: Heads) -> bool:
    """Whether its heads are these, of the same classes, in the same order.

    Data that lie nowhere are generated, and names of their classes mean the same only where all of them are the same.
    """
    if not marked(PLACE, job.sections["data"], "data") and run["data"]["fingerprint"] != data.fingerprint:
        return False
    if any(head.fresh for head in heads.values()) or "trained" not in run:  # an older version did not remember
        return False
    here = [(name, [head.kind, head.size]) for name, head in heads.items()]
    there = [(name, list(sizes)) for name, sizes in run["trained"].items()]
    return here == there and list(run["data"]["classes"].get("train", ())) == list(data.classes.get("train", ()))
