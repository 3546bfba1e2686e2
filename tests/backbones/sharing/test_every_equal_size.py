"""The experiments that compare architectures give each as many parameters as hard sharing has."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from metarun.cli import CONF
from metarun.construct import construct
from metarun.maths.net import Net
from metarun.types import Head, Heads

ARCHITECTURES = {path.stem for path in (CONF / "sharing").glob("*.yaml")}
EXPERIMENTS: dict[str, Heads] = {
    "sharing_multimnist": {"left": Head("class", 10), "right": Head("class", 10)},
    "sharing_mnist_tasks": {"digit": Head("class", 10), "parity": Head("class", 2), "ink": Head("value", 1)},
}


def read(*parts: str) -> dict[str, Any]:
    return yaml.safe_load(Path(CONF, *parts).read_text())


def learned(heads: Heads, sharing: str, keys: dict[str, Any]) -> int:
    shape = (1, 28, 28)
    make = partial(construct, {**read("backbone", "lenet.yaml"), **keys}, "backbone", shape=shape)
    given = {"make_trunk": make, "heads": len(heads), "shape": shape}
    net = Net.build(partial(construct, read("sharing", f"{sharing}.yaml"), "sharing", **given), heads, "batch")
    return sum(p.numel() for p in net.module.parameters())


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_architectures_are_compared_at_equal_parameters(experiment: str) -> None:
    """To 3 in 100."""
    found = CONF.glob(f"pair/experiment/{experiment}_*.yaml")
    files = {path.stem.removeprefix(f"{experiment}_"): path.name for path in found}
    assert files.keys() == ARCHITECTURES - {"hard"}
    counts = {"hard": learned(EXPERIMENTS[experiment], "hard", {})}
    for sharing, file in files.items():
        keys = read("pair", "experiment", file)["backbone"]
        counts[sharing] = learned(EXPERIMENTS[experiment], sharing, keys)
    page = Path(__file__).parents[3] / "docs" / "multitask.md"
    table = page.read_text().partition("### At equal parameters")[2]
    for sharing, count in counts.items():
        assert abs(count / counts["hard"] - 1) < 0.03, sharing
        assert f"{count:,}" in table, sharing


def test_an_experiment_takes_the_widths_of_the_architecture_that_is_chosen() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen, none = (
            compose("config", ["experiment=sharing_multimnist", *more, "name=test"]) for more in (["sharing=soft"], [])
        )
    widths = read("pair", "experiment", "sharing_multimnist_soft.yaml")["backbone"]
    assert chosen.backbone.channels == widths["channels"] and chosen.backbone.units == widths["units"]
    assert none.backbone.channels == read("backbone", "lenet.yaml")["channels"] and "sharing" not in none
