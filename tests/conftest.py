"""Small problems with known content: episodes, networks and every algorithm of conf/algo on them, in float64."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: each has a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metarun.backbones.cnn import CNN
from metarun.cli.compose import _source, _sources, _test_data
from metarun.cli.main import main
from metarun.construct import construct, takes
from metarun.data.draw.source import split_classes
from metarun.data.images.collection import Collection
from metarun.engine.ranks import ALONE
from metarun.maths.net import Net
from metarun.settings import COURSE, Job
from metarun.types import Algorithm, Batch, Draw, Episode, Head, Heads, Params, Sampler, Span, UserError

CONF = Path(__file__).parents[1] / "conf"
SIDE = 8
FEW = 3  # inner steps, and those of a solver: more prove nothing else
QUICK = (
    "data=sinusoid",
    "backbone.hidden=[4]",
    "parallel=vmap",
    "train.steps=2",
    "train.tasks=2",
    "val.tasks=2",
    "test.tasks=2",
    "test.adapt_steps=1",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("own") / "cache"
    monkeypatch.setenv("METARUN_CACHE", str(folder))
    return folder


class Case(NamedTuple):
    """An algorithm, its float64 parameters, a meta-batch it trains on, and where both are drawn from."""

    algo: Algorithm
    tested: Algorithm  # with the heads of episodes
    params: Params
    sample: Any
    sampler: Sampler  # of training
    test: Sampler  # of episodes


@dataclass(frozen=True)
class Double:
    """A sampler in float64."""

    inner: Any

    @property
    def heads(self) -> Heads:
        return self.inner.heads

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    @property
    def from_disk(self) -> bool:
        return self.inner.from_disk

    def draw(self, tasks: int, generator: torch.Generator) -> Draw:
        return self.inner.draw(tasks, generator)

    def gather(self, draw: Draw) -> Any:
        return double(self.inner.gather(draw))


class Identity(nn.Module):
    """A trunk without parameters: the network is linear, and a squared error quadratic in its weights."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return x


def double(tree: Any) -> Any:
    return tree_map(lambda t: t.double() if t.is_floating_point() else t, tree)


def _trunk(norm: str, dropout: float) -> CNN:
    return CNN(
        (1, SIDE, SIDE),
        channels=[3, 4],
        stride=2,
        pool=1,
        norm=norm,
        dropout=dropout,
        flatten=False,
        hidden=[],
    )


def _net(heads: Heads, norm: str = "batch", norm_stats: str = "batch", dropout: float = 0.0) -> Net:
    net = Net.build(partial(_trunk, norm, dropout), heads, norm_stats)
    net.module.double()
    return net


def _plain_logits(params: Params, x: Tensor, source: Tensor) -> Tensor:
    """The network of `_net` written out: batch norm by the statistics of `source` in every layer."""
    for block in range(2):
        name = f"trunk.blocks.{block}"
        weight, bias = params[f"{name}.conv.weight"], params.get(f"{name}.conv.bias")
        x, source = (F.conv2d(t, weight, bias, stride=2, padding=1) for t in (x, source))
        if f"{name}.norm.weight" in params:
            mean = source.mean((0, 2, 3), keepdim=True)
            var = ((source - mean) ** 2).mean((0, 2, 3), keepdim=True)
            scale, shift = (params[f"{name}.norm.{part}"][:, None, None] for part in ("weight", "bias"))
            x, source = ((t - mean) / (var + 1e-5).sqrt() * scale + shift for t in (x, source))
        x, source = x.clamp(min=0), source.clamp(min=0)
    return x.mean((2, 3)) @ params["head.weight"].T + params["head.bias"]


def _episode(tasks: int = 3, ways: int = 3, shots: int = 2, queries: int = 2, seed: int = 0) -> Episode:
    """Random images in float64; rows go shot by shot."""
    generator = torch.Generator().manual_seed(seed)

    def batch(each: int) -> Batch:
        x = torch.rand(tasks, ways * each, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
        return Batch(x, {"class": torch.arange(ways).repeat(each).expand(tasks, -1)})

    return Episode(batch(shots), batch(queries))


def _collection(groups: int = 4, classes: int = 3, images: int = 6) -> Collection:
    """Random images of classes in named groups."""
    total = groups * classes
    pixels = torch.randint(0, 256, (total * images, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    names = tuple(f"g{g}/c{c}" for g in range(groups) for c in range(classes))
    owners = tuple(name.partition("/")[0] for name in names)
    return Collection.of(pixels.byte(), torch.arange(total).repeat_interleave(images), names, owners)


@lru_cache
def _sections(name: str) -> dict[str, Any]:
    """What the YAML of an algorithm says of it, and of the balance that it takes."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("config", [f"algo={name}", "name=test"]), resolve=True)
    return {group: config.get(group) for group in ("algo", "balance")}


def _case(
    name: str,
    norm: str = "batch",
    norm_stats: str = "batch",
    dropout: float = 0.0,
    balance: str = "",
    source: Any = None,
    ways: Span = 3,
    shots: Span = 2,
    **keys: Any,
) -> Case:
    own = {key: value for key, value in _sections(name)["algo"].items() if key not in COURSE}
    own |= {key: FEW for key, value in own.items() if key.endswith("_steps") and value > FEW}
    section = {**own, **keys}
    collection = _collection()
    everything = {"train": range(len(collection.names))}
    data = split_classes("random", collection, everything, {"train": False}, {})
    test = data.episodes("train", ways, shots, 2)
    wanted = _sections(name)["algo"]["trains_on"]
    by = wanted if isinstance(wanted, str) else wanted[0]
    sampler = test if by == "episodes" else data.tasks(by, 5)
    net = _net(sampler.heads, norm, norm_stats, dropout)
    balanced = (
        yaml.safe_load((CONF / "balance" / f"{balance}.yaml").read_text()) if balance else _sections(name)["balance"]
    )
    generator = torch.Generator().manual_seed(0)
    try:
        given = {"balance": construct(balanced, "balance")} if balanced else {}
        given |= {"source": source} if takes(section, "algo", "source") else {}
        algo = construct(section, "algo", net=net, **given)
        params = double(algo.init(generator))
    except UserError as error:
        if not balance:
            raise
        pytest.skip(str(error))  # a balance that an extra brings, or one for heads that share their inputs
    tested = construct(section, "algo", net=net.testing(test.heads), **given)
    sample = double(sampler.gather(sampler.draw(6, generator)))
    return Case(algo, tested, params, sample, Double(sampler), Double(test))


def _close(one: Mapping[str, Tensor], other: Mapping[str, Tensor], tolerance: float = 1e-9) -> bool:
    """Whether two trees of the same names differ by no more than `tolerance`, and are not all zero."""
    assert one.keys() == other.keys()
    assert any(bool(t.any()) for t in one.values())
    return all(torch.allclose(one[n], other[n], rtol=tolerance, atol=tolerance) for n in one)


def _write_images(root: Path, groups: int = 4, classes: int = 4, images: int = 8, side: int = 12) -> Path:
    """Class folders of easy images: a block pattern of the class's own, with noise."""
    generator = torch.Generator().manual_seed(0)
    for g in range(groups):
        for c in range(classes):
            folder = root / f"g{g}" / f"c{c}"
            folder.mkdir(parents=True)
            blocks = torch.randint(0, 2, (side // 4, side // 4), generator=generator).float() * 200
            pattern = blocks.repeat_interleave(4, 0).repeat_interleave(4, 1)
            for i in range(images):
                noise = torch.randint(0, 55, (side, side), generator=generator)
                Image.fromarray((pattern + noise).byte().numpy()).save(folder / f"{i}.png")
    return root


@pytest.fixture(params=sorted(path.stem for path in (CONF / "algo").glob("*.yaml")))
def algo_name(request: pytest.FixtureRequest) -> str:
    """Every algorithm there is."""
    return request.param


@pytest.fixture
def case() -> Callable[..., Case]:
    return _case


@pytest.fixture
def episode() -> Callable[..., Episode]:
    return _episode


@pytest.fixture
def conv_net() -> Callable[..., Net]:
    """conv_net(norm, norm_stats, dropout): two small convolutions, three classes, float64."""
    return partial(_net, {"class": Head("class", 3)})


@pytest.fixture
def plain_logits() -> Callable[..., Tensor]:
    """plain_logits(params, x, source): what `conv_net` must compute."""
    return _plain_logits


@pytest.fixture
def linear_net() -> Net:
    """y = w·x + b with squared error, for x of two entries."""
    net = Net.build(partial(Identity, 2), {"y": Head("value", 1)}, "batch")
    net.module.double()
    return net


@pytest.fixture
def points() -> Episode:
    """Regression episodes for `linear_net`: 3 tasks of 5 support and 4 query points."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 9, 2, generator=g, dtype=torch.float64)
    y = torch.randn(3, 9, 1, generator=g, dtype=torch.float64)
    return Episode(Batch(x[:, :5], {"y": y[:, :5]}), Batch(x[:, 5:], {"y": y[:, 5:]}))


@pytest.fixture
def close() -> Callable[..., bool]:
    return _close


@pytest.fixture
def write_images() -> Callable[..., Path]:
    return _write_images


class Outcome(NamedTuple):
    """What a command line ended with."""

    code: int
    out: str
    err: str


@pytest.fixture
def metarun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """metarun(*arguments): the whole command line in this process, in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METARUN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def command(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["metarun", *arguments])
        capsys.readouterr()
        try:
            code: Any = main()
        except SystemExit as end:
            code = end.code or 0
        return Outcome(code, *capsys.readouterr())

    yield command
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def quick(metarun: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """quick(*arguments): two steps of sinusoid regression, and what is typed beside."""
    return partial(metarun, *QUICK)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """job("algo=maml", ...): what the command line makes of these overrides."""

    def made(*overrides: str, name: str = "run") -> Job:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [*overrides, "name=test"], return_hydra_config=True)
            test_data = _test_data(config)
            sources = _sources(OmegaConf.to_container(config.data, resolve=True))
            source = _source(config.algo.get("source"), tmp_path / name, ALONE)
        choices = {group: str(choice) for group, choice in config.hydra.runtime.choices.items()}
        with open_dict(config):
            del config.hydra
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        plain: Any = OmegaConf.to_container(config, resolve=True)
        return Job(plain, choices, test_data, folder, "test", lambda: None, sources=sources, source=source)

    return made
