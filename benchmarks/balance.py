"""What a step of multi-task learning costs under every balance, beside equal weights and beside others' code.

First LeNet on 256 images that all heads share, then conv4 on tasks with images of their own (as Omniglot's alphabets).
A plain loop takes K ways back through everything and the slopes' Gram matrix, and weighs the slopes equally.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from benchmarks import command
from benchmarks.measure import in_turns, repeated
from metarun.algos.mtl import MultiTask
from metarun.construct import construct
from metarun.engine.choice import candidates
from metarun.engine.device import pick
from metarun.engine.mapping import Parallel
from metarun.maths.net import Net
from metarun.types import LOTS, Balance, Batch, Head, Heads

CONF = Path(__file__).parents[1] / "conf"
ROWS, CLASSES = 256, 10
TASKS, OWN_ROWS, OWN_CLASSES = 25, 20, 160  # alphabets, images of each in a step, classes of each
OTHERS = ("PCGrad", "MGDA", "UPGrad", "CAGrad", "IMTLG", "AlignedMTL", "NashMTL")  # of TorchJD
LIBMTL = ("EW", "UW", "PCGrad", "MGDA", "GradVac", "IMTL")  # its CAGrad takes three tasks alone

Step = Callable[[], Any]


def main(argv: list[str]) -> None:
    parser = command.timing(command.options("balance", __doc__))
    parser.add_argument("--heads", default="2,8,32", help="how many share the images")
    args = parser.parse_args(argv)
    facts = command.begin(args)
    device = pick(args.device, 0, None)
    rows: list[dict[str, Any]] = []
    print("milliseconds a step, and times equal weights of the same code")
    for count in map(int, args.heads.split(",")):
        rows += _measured(f"{count} heads share {ROWS} images", dict(_shared(count, device)), args, device)
    rows += _measured(f"{TASKS} tasks of {OWN_ROWS} images each", dict(_alone(device)), args, device)
    command.save(args, facts, rows)


def _measured(what: str, steps: dict[tuple[str, str], Step], args: Any, device: torch.device) -> list[dict[str, Any]]:
    """Each step timed in turns; the first one of each code is its equal weights."""
    taken = in_turns({key: repeated(step) for key, step in steps.items()}, args.repeats, args.seconds, device)
    bases = {code: median(taken[code, name]) for code, name in reversed(taken)}
    found = []
    print(what)
    for (code, name), seconds in taken.items():
        ms = 1000 * median(seconds)
        found.append({"what": what, "code": code, "balance": name, "ms": ms, "times_equal": ms / 1000 / bases[code]})
        print(f"  {code:<11}{name:<14}{ms:>9.2f}{found[-1]['times_equal']:>8.2f}x", flush=True)
    return found


def _shared(count: int, device: torch.device) -> Iterator[tuple[tuple[str, str], Step]]:
    heads = {f"head{i}": Head("class", CLASSES) for i in range(count)}
    x = torch.rand(1, ROWS, 1, 28, 28, device=device)
    y = {name: torch.randint(CLASSES, (1, ROWS), device=device) for name in heads}
    net = _net("lenet", heads, device)
    for name, balance in _balances():
        yield ("metarun", name), _metarun(net, balance, Batch(x, y), [Parallel("loop", 1)])
    model = Plain(count).to(device)
    images, classes = x[0], [one[0] for one in y.values()]
    yield ("plain loop", "equal"), lambda: model.summed(images, classes)
    yield ("plain loop", "gram"), lambda: model.one_by_one(images, classes)
    yield from _torchjd(model, images, classes)
    yield from _libmtl(model, images, classes, device)


def _alone(device: torch.device) -> Iterator[tuple[tuple[str, str], Step]]:
    heads: Heads = {f"task{i}": Head("class", OWN_CLASSES, gaps=True, alone=True) for i in range(TASKS)}
    x = torch.rand(TASKS, OWN_ROWS, 1, 28, 28, device=device)
    own = torch.eye(TASKS, dtype=torch.bool, device=device)[..., None]
    y = torch.where(own, torch.randint(OWN_CLASSES, (TASKS, OWN_ROWS), device=device), -100)  # [H, T, B]
    net = _net("conv4", heads, device)
    for name, balance in _balances():
        if balance.needs != "features":
            batch = Batch(x, dict(zip(heads, y, strict=True)))
            yield ("metarun", name), _metarun(net, balance, batch, candidates(TASKS, None, device, False))


def _net(backbone: str, heads: Heads, device: torch.device) -> Net:
    section = yaml.safe_load((CONF / "backbone" / f"{backbone}.yaml").read_text())
    return Net.build(partial(construct, section, "backbone", shape=(1, 28, 28)), heads, "batch").to(device)


def _balances() -> Iterator[tuple[str, Balance]]:
    """Equal weights first."""
    names = sorted((path.stem for path in (CONF / "balance").glob("*.yaml")), key=lambda name: (name != "equal", name))
    for name in names:
        yield name, construct(yaml.safe_load((CONF / "balance" / f"{name}.yaml").read_text()), "balance")


def _metarun(net: Net, balance: Balance, batch: Batch, mappings: Sequence[Parallel]) -> Step:
    """One meta-gradient, in the fastest of the mappings."""
    algo = MultiTask(net, balance, inner_lr=1.0, test_adapt="head", single_task=False)
    device = batch.x.device
    params = {name: p.to(device) for name, p in algo.init(torch.Generator().manual_seed(0)).items()}
    if LOTS in params:
        params[LOTS].uniform_()
    steps = {mapping: partial(algo.meta_grad, params, batch, mapping) for mapping in mappings}
    if len(steps) == 1:
        return next(iter(steps.values()))
    taken = in_turns({mapping: repeated(step) for mapping, step in steps.items()}, 3, 0.3, device)
    return steps[min(taken, key=lambda mapping: median(taken[mapping]))]


class Plain(nn.Module):
    """The same network as most people write it."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        convolutions = (
            nn.Conv2d(1, 10, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(10, 20, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.trunk = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(320, 50), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(50, CLASSES) for _ in range(heads))

    def losses(self, seen: Tensor, classes: Sequence[Tensor]) -> list[Tensor]:
        return [F.cross_entropy(head(seen), y) for head, y in zip(self.heads, classes, strict=True)]

    def summed(self, x: Tensor, classes: Sequence[Tensor]) -> None:
        torch.autograd.grad(torch.stack(self.losses(self.trunk(x), classes)).mean(), [*self.parameters()])

    def one_by_one(self, x: Tensor, classes: Sequence[Tensor]) -> Tensor:
        losses, leaves = self.losses(self.trunk(x), classes), [*self.parameters()]
        rows = [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)]
            )
            for loss in losses
        ]
        slopes = torch.stack(rows)
        gram = slopes @ slopes.T
        return torch.full_like(gram[0], 1 / len(gram)) @ slopes


def _torchjd(model: Plain, x: Tensor, classes: Sequence[Tensor]) -> Iterator[tuple[tuple[str, str], Step]]:
    """Its autojac: the Jacobian of all losses by the trunk, and an aggregator of it."""
    try:
        autojac, aggregation = (importlib.import_module(f"torchjd.{part}") for part in ("autojac", "aggregation"))
    except ImportError as error:
        print(f"  without TorchJD ({error})")
        return
    trunk = [*model.trunk.parameters()]

    def step(aggregator: Any) -> None:
        model.zero_grad()
        seen = model.trunk(x)
        autojac.mtl_backward(model.losses(seen, classes), features=seen)
        autojac.jac_to_grad(trunk, aggregator)

    yield ("TorchJD", "equal"), lambda: model.summed(x, classes)
    for name in OTHERS:
        options = {"n_tasks": len(classes)} if name == "NashMTL" else {"c": 0.5} if name == "CAGrad" else {}
        try:
            yield ("TorchJD", name), partial(step, getattr(aggregation, name)(**options))
        except ImportError as error:
            print(f"  without TorchJD's {name} ({error})")


def _libmtl(
    model: Plain, x: Tensor, classes: Sequence[Tensor], device: torch.device
) -> Iterator[tuple[tuple[str, str], Step]]:
    """Its weightings, given what its trainer gives them."""
    try:
        weighting = importlib.import_module("LibMTL.weighting")
    except ImportError as error:
        print(f"  without LibMTL ({error})")
        return

    def made(name: str) -> Any:
        own = {
            "get_share_params": lambda self: model.trunk.parameters(),
            "zero_grad_share_params": lambda self: model.trunk.zero_grad(set_to_none=False),
        }
        found = type(name, (getattr(weighting, name),), own)()
        found.task_num, found.device, found.rep_grad = len(classes), device, False
        found.task_name, found.epoch, found.train_loss_buffer = [*range(len(classes))], 0, None
        found.init_param()
        return found.to(device)

    def step(method: Any, options: dict[str, Any]) -> None:
        for p in model.parameters():  # it writes into gradients that are there
            p.grad = torch.zeros_like(p)
        method.backward(torch.stack(model.losses(model.trunk(x), classes)), **options)

    options: dict[str, dict[str, Any]] = {"MGDA": {"mgda_gn": "none"}, "GradVac": {"beta": 0.5}}
    for name in LIBMTL:
        if hasattr(weighting, name):
            yield ("LibMTL", name), partial(step, made(name), options.get(name, {}))


if __name__ == "__main__":
    command.answering(main)
