"""The check from the command line: every algorithm passes, broken ones do not, and nothing is left behind."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metarun.data.draw.episodes import EpisodeSampler
from metarun.types import Batch, Episode

WHATS = ("meta-gradient", "one task", "shuffled labels", "splits")
SMALL = (
    *("data=folder", "data.size=12", "data.colour=false", "data.ways=2", "train.shots=2", "device=cpu"),
    *("backbone.channels=[8,8,8,8]", "parallel=vmap", "val.tasks=32", "test.tasks=4", "test.adapt_steps=2"),
)
OWN = """
from dataclasses import dataclass

from metarun.maths.inner import query_grad, sgd
from metarun.maths.net import Net
from metarun.types import learned


@dataclass(frozen=True)
class Own:
    net: Net

    def init(self, generator):
        return self.net.init(generator)

    def adapt(self, params, support, steps):
        def loss(fast, support, step):
            return self.net.loss(fast, support)

        yield from sgd(loss, params, support, 0.4, steps, learned(params), first_order=True)

    def predict(self, fast, x):
        return self.net(fast, x)

    def meta_grad(self, params, episode, parallel):
        return query_grad(self, params, episode, parallel, 1)
"""


@pytest.fixture
def check(metarun: Callable[..., Any], write_images: Callable[..., Path]) -> Callable[..., Any]:
    """check(*arguments): of runs on a small folder of easy images."""
    root = write_images(Path.cwd() / "images")
    return lambda *arguments: metarun("check", *SMALL, f"data.root={root}", *arguments)


def marks(outcome: Any) -> dict[str, str]:
    """What stands in front of each check."""
    found = re.findall(rf"^(.) ({'|'.join(WHATS)}) ", outcome.out, re.MULTILINE)
    return {what: mark for mark, what in found}


def files() -> set[str]:
    return {os.path.join(folder, name) for folder, _, names in os.walk(".") for name in names}


def test_every_algorithm_passes(check: Callable[..., Any], algo_name: str) -> None:
    before = files()
    outcome = check(f"algo={algo_name}")
    assert outcome.code == 0, outcome.out + outcome.err
    assert set(marks(outcome)) == set(WHATS) and "✗" not in outcome.out
    assert files() == before and not Path("outputs").exists()


def test_what_the_run_needs_is_told_with_the_keys_that_lower_it(check: Callable[..., Any]) -> None:
    told = check("algo=maml", "train.steps=5000", "train.tasks=3", "val.tasks=2").out
    assert re.search(r"^  time +about [\d:]+: [\d:]+ for 5,000 steps of \d+ ms, .* 25 validations", told, re.MULTILINE)
    assert re.search(r"^  to lower it +train\.steps=5000, train\.tasks=3", told, re.MULTILINE)
    assert re.search(r"^  memory +[\d,]+ MB on cpu .*vmap chunk 3$", told, re.MULTILINE)
    assert re.search(r"^  to lower that +chunk=3, algo\.remat=true, backbone=conv4$", told, re.MULTILINE)


def test_a_run_that_ends_by_the_clock_needs_no_longer(check: Callable[..., Any]) -> None:
    told = check("algo=protonet", "train.steps=1000000", "train.max_time=2s", "val.tasks=2").out
    (training,) = re.findall(r"about [\d:]+: (0:0\d) for [\d,]+ steps", told)
    assert training <= "0:03"


def test_a_regression_has_neither_labels_nor_images(metarun: Callable[..., Any]) -> None:
    outcome = metarun("check", "data=sinusoid", "parallel=vmap", "val.tasks=2", "test.tasks=2")
    assert outcome.code == 0 and marks(outcome) == dict(zip(WHATS, "✓✓––", strict=True))


def test_a_broken_algorithm_of_ones_own_fails_with_one(check: Callable[..., Any]) -> None:
    Path("conf/algo").mkdir(parents=True)
    Path("conf/algo/own.yaml").write_text("_target_: own_checked.Own\ntrains_on: episodes\n")
    Path("own_checked.py").write_text(OWN)
    outcome = check("algo=own")
    assert outcome.code == 1 and marks(outcome)["meta-gradient"] == "✗"


def test_a_sampler_that_hands_out_the_support_set_as_queries_is_found(
    check: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = EpisodeSampler.gather

    def leaking(self: EpisodeSampler, draw: Any) -> Episode:
        support, query = whole(self, draw)
        again = support.x.repeat(1, query.x.shape[1], 1, 1, 1)[:, : query.x.shape[1]]
        return Episode(support, Batch(again, query.y))

    monkeypatch.setattr(EpisodeSampler, "gather", leaking)
    outcome = check("algo=protonet")
    assert outcome.code == 1 and marks(outcome) == dict(zip(WHATS, "✓✓✗✓", strict=True))


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("algo=mamel",), "Did you mean"),
        (("data.ways=50",), "data.ways=50"),
        (("-m", "seed=0,1"), "Leave it out"),
        (("seed=0,1",), "several values"),
        (("resume=.",), "no run"),
        (("train.setps=3",), "train.steps"),
    ],
)
def test_a_config_that_cannot_run_is_told_in_one_line(
    check: Callable[..., Any], typed: tuple[str, ...], told: str
) -> None:
    outcome = check(*typed)
    assert outcome.code == 2 and told in outcome.err and len(outcome.err.splitlines()) == 1


def test_a_run_is_not_checked_where_it_goes_on(metarun: Callable[..., Any], quick: Callable[..., Any]) -> None:
    assert quick("hydra.run.dir=run").code == 0
    before = files()
    outcome = metarun("check", "resume=run")
    assert outcome.code == 2 and "Leave out resume=" in outcome.err and files() == before
