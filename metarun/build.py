"""The parts of a run, built from its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from metarun.construct import construct, prepared, target_of
from metarun.engine.compile import check_compiler
from metarun.engine.device import allow_tf32, pick
from metarun.errors import UserError
from metarun.maths.net import Net
from metarun.settings import Root, Test, Train, Val, check_bounds
from metarun.types import Algorithm, Data, Sampler

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Parts:
    """All that a run needs, ready to train and to test."""

    root: Root
    train: Train
    val: Val
    test: Test
    device: torch.device
    ways: int
    data: Data
    test_data: Data
    net: Net
    algo: Algorithm
    eval_algo: Algorithm  # the same without dropout
    sampler: Sampler
    val_sampler: Sampler
    test_sampler: Sampler


def build(config: Config, test_data: Config | None) -> Parts:
    """`test_data` is the section of another data set for the meta-test, where there is one."""
    config = {**config, "algo": {k: v for k, v in config["algo"].items() if k != "phases"}}
    check_bounds(config)
    root = construct({k: v for k, v in config.items() if not isinstance(v, dict)}, "", Root)
    train, val, test = (construct(config[s.__name__.lower()], s.__name__.lower(), s) for s in (Train, Val, Test))
    device = construct(config["device"], "device", pick)
    allow_tf32(root.precision == "tf32")
    if root.compile:
        check_compiler(device)
    data, other = _load(config, test_data, device)
    kind = target_of(config["algo"], "algo")
    test_sampler = other.episodes("test", *_of_task(config, "test"))
    if kind.trains_on == "episodes":
        sampler, given = data.episodes("train", *_of_task(config, "train")), {}
    else:
        sampler = data.tasks(kind.trains_on, train.shots)
        given = {"task_heads": sampler.heads}
    make_trunk = partial(prepared(config["backbone"], "backbone", "shape"), shape=data.shape)
    net = Net.build(make_trunk, test_sampler.heads, root.norm_stats, root.precision == "bf16")
    return Parts(
        root=root,
        train=train,
        val=val,
        test=test,
        device=device,
        ways=config["data"]["ways"],
        data=data,
        test_data=other,
        net=net,
        algo=construct(config["algo"], "algo", net=net, **given),
        eval_algo=construct(config["algo"], "algo", net=net.eval(), **given),
        sampler=sampler,
        val_sampler=data.episodes("val", *_of_task(config, "test")),
        test_sampler=test_sampler,
    )


def _of_task(config: Config, section: str) -> tuple[int, int, int, str]:
    """Ways, shots, queries, and the section that they were set in."""
    data, own = config["data"], config[section]
    inherited = all(own[key] == data[key] for key in ("shots", "queries"))
    return data["ways"], own["shots"], own["queries"], "data" if inherited else section


def _load(config: Config, test_data: Config | None, device: torch.device) -> tuple[Data, Data]:
    data = construct(config["data"], "data").load(device)
    if test_data is None:
        return data, data
    other = construct(test_data, "test.data").load(device)
    if other.shape != data.shape:
        raise UserError(
            f"test.data={config['test']['data']} has inputs of shape {list(other.shape)}, the training data "
            f"{list(data.shape)}: a meta-test across data sets needs the same."
        )
    return data, other
