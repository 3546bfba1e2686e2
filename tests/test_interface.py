"""An object of one's own that is not what its place asks for is told in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metarun.errors import UserError
from metarun.interface import check_trunk, fulfilled, is_own
from metarun.optim.sam import SAM
from metarun.types import Algorithm, Balance, Optimizer, Source

HEAD = """
import random

import torch
from torch import nn

from metarun.maths.inner import query_grad, sgd
from metarun.types import learned
"""
WHOLE = {
    "init": "def init(self, generator): return self.net.init(generator)",
    "adapt": """def adapt(self, params, support, steps):
        def loss(fast, support, step):
            return self.net.loss(fast, support)
        yield from sgd(loss, params, support, 0.1, steps, learned(params), True)""",
    "predict": "def predict(self, fast, x): return self.net(fast, x)",
    "meta_grad": """def meta_grad(self, params, episode, parallel):
        return query_grad(self, params, episode, parallel, 1)""",
}
SLOPES = "{n: t.clone() for n, t in p.items()}"
COUNTS = f"""def meta_grad(self, p, e, m):
        self.calls = getattr(self, "calls", 0) + 1
        return {SLOPES}, {{"loss": torch.tensor(float(self.calls))}}"""
GROWS = f"""def meta_grad(self, p, e, m):
        self.metrics = {{**getattr(self, "metrics", {{}}), len(vars(self)): torch.zeros(())}}
        return {SLOPES}, {{**self.metrics, "loss": torch.zeros(())}}"""
DICE = f"def meta_grad(self, p, e, m): return {SLOPES}, {{'loss': torch.tensor(random.random())}}"
TORCHS = f"def meta_grad(self, p, e, m): return {SLOPES}, {{'loss': torch.rand(())}}"


def written(**methods: str) -> None:
    """An algorithm of the user's own in the current folder, with some methods written otherwise, or left out."""
    body = "\n    ".join(text for text in {**WHOLE, **methods}.values() if text)
    Path("own_algo.py").write_text(f"{HEAD}\nclass Own:\n    def __init__(self, net): self.net = net\n    {body}\n")
    Path("conf/algo").mkdir(parents=True)
    Path("conf/algo/own.yaml").write_text("_target_: own_algo.Own\ntrains_on: episodes\n")


@pytest.fixture
def answer(quick: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """answer(adapt="..."): how a run of the algorithm ends that has this method in place of a right one."""

    def ended(**methods: str) -> Any:
        written(**methods)
        monkeypatch.delitem(__import__("sys").modules, "own_algo", raising=False)
        return quick("algo=own")

    return ended


def test_an_algorithm_that_is_one_trains(answer: Callable[..., Any]) -> None:
    assert answer().code == 0


def test_an_algorithm_may_draw_by_torch(answer: Callable[..., Any]) -> None:
    assert answer(meta_grad=TORCHS).code == 0


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ({"meta_grad": ""}, "Own has no meta_grad. An Algorithm of metarun has adapt, init, meta_grad, net, predict"),
        ({"predict": "", "init": ""}, "Own has no init and no predict"),
        ({"adapt": "def adapt(self, params, support): yield params"}, "called as adapt(params, support, steps)"),
        ({"adapt": "def adapt(self, params, support, steps): return params"}, "Own.adapt returns a dict of"),
        ({"adapt": "def adapt(self, params, support, steps): pass"}, "Own.adapt returns nothing. Let it yield"),
        ({"adapt": "def adapt(self, params, support, steps): yield 5"}, "Own.adapt yields a int. Let it yield a dict"),
        ({"adapt": "def adapt(self, params, support, steps): yield from ()"}, "Own.adapt yields nothing"),
        ({"init": "def init(self, generator): return [1]"}, "Own.init returns a list. Let it return θ"),
        ({"predict": "def predict(self, fast, x): return x"}, "Own.predict returns a tensor [10, 1]. Let it return"),
        ({"meta_grad": "def meta_grad(self, p, e, m): return p"}, "Own.meta_grad returns a dict of"),
        ({"meta_grad": "def meta_grad(self, p, e, m): return p, {'a': e.query.x.sum()}"}, "one is `loss`"),
        ({"meta_grad": COUNTS}, "Own.meta_grad gives two answers to one question. Let what changes"),
        ({"meta_grad": GROWS}, "Own.meta_grad gives two answers to one question. Let what changes"),
        ({"meta_grad": DICE}, "Own.meta_grad gives two answers to one question. Let what changes"),
        ({"meta_grad": "def meta_grad(self, p, e, m): return {'a': e.query.x}, {'loss': e.query.x.sum()}"}, "no slope"),
    ],
)
def test_an_algorithm_that_lacks_something_is_told_what_the_interface_asks_for(
    answer: Callable[..., Any], methods: dict[str, str], words: str
) -> None:
    outcome = answer(**methods)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome
    assert outcome.err.startswith("metarun: algo: Own") and words in outcome.err, outcome.err


def test_a_mistake_inside_an_algorithm_of_ones_own_keeps_its_traceback(answer: Callable[..., Any]) -> None:
    outcome = answer(predict="def predict(self, fast, x): return 1 / 0")
    assert outcome.code == 1 and "own_algo.py" in outcome.err


class Trunk(nn.Module):
    def __init__(self, features: Any, gives: int = 4) -> None:
        super().__init__()
        self.features = features
        self.layer = nn.Linear(3, gives)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_a_backbone_gives_as_many_features_as_it_says() -> None:
    check_trunk(Trunk(4), (3,))
    with pytest.raises(UserError, match=r"^backbone: Trunk makes a tensor \[2, 5\] of 2 inputs, .* are 4\."):
        check_trunk(Trunk(4, 5), (3,))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("self.features = 4; self.n = nn.BatchNorm1d(4)", "n is a BatchNorm1d"),
        ("self.features = 4; self.n = nn.InstanceNorm1d(4, track_running_stats=True)", "n is a InstanceNorm1d"),
        ("self.n = nn.Linear(1, 4)", "Own does not say how wide its output is. Set its `features`"),
        ("self.features = nn.Linear(1, 4)", "Own does not say how wide its output is. Set its `features`"),
        ("self.features = 0", "Own does not say how wide its output is. Set its `features`"),
    ],
)
def test_a_backbone_of_ones_own_is_told_what_the_interface_asks_for(
    quick: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    Path("own_trunk.py").write_text(
        f"{HEAD}\nclass Own(nn.Module):\n    def __init__(self, shape, hidden):\n        super().__init__(); {body}\n"
    )
    Path("conf/backbone").mkdir(parents=True)
    Path("conf/backbone/own.yaml").write_text("_target_: own_trunk.Own\nhidden: [1]\n")
    monkeypatch.delitem(__import__("sys").modules, "own_trunk", raising=False)
    outcome = quick("backbone=own")
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome
    assert outcome.err.startswith("metarun: backbone: ") and words in outcome.err


def test_what_torch_and_metarun_bring_fulfils_its_interface() -> None:
    p = [torch.zeros(1)]
    assert fulfilled(torch.optim.Adam(p), Optimizer, "optim")
    assert fulfilled(SAM(p, 0.1, 0.1, torch.optim.SGD), Optimizer, "optim")
    assert not is_own(SAM(p, 0.1, 0.1, torch.optim.SGD)) and is_own(Trunk(4))


@pytest.mark.parametrize(
    ("interface", "words"),
    [
        (Algorithm, "has no adapt and no init and no meta_grad and no net and no predict"),
        (Balance, "has no __call__ and no init and no needs"),
        (Source, "has no load"),
    ],
)
def test_all_that_is_missing_is_named(interface: type, words: str) -> None:
    with pytest.raises(UserError, match=words):
        fulfilled(object(), interface, "x")
