"""Small MNIST, once as it is and once two digits to an image, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.data.draw.table import TableData
from metarun.data.mix import Mix
from metarun.errors import UserError
from metarun.types import Head

CPU = torch.device("cpu")
SHORT = ("algo=mtl", "data=mix", "data.queries=5", "backbone=mlp", "backbone.hidden=[4]", "parallel=vmap")
SHORTEST = (*SHORT, "train.steps=2", "train.shots=4", "val.every=2", "hydra.run.dir=run")


@pytest.fixture
def sources(small_mnist: Any, configured: Callable[..., Any], tmp_path: Path) -> dict[str, Any]:
    small_mnist.write(tmp_path)
    return {name: configured(name, root=str(tmp_path)) for name in ("mnist_tasks", "multimnist")}


@pytest.fixture
def mixed(sources: dict[str, Any]) -> Callable[..., TableData]:
    def load(*sets: str, **others: Any) -> TableData:
        return Mix(list(sets), None, 1, 0, 5, {**sources, **others}).load(CPU)

    return load


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_heads_of_each_set_are_known_in_its_own_task_alone(mixed: Callable[..., TableData]) -> None:
    data = mixed("mnist_tasks", "multimnist")
    drawn = data.tasks("group", 12)
    assert {name: (head.kind, head.size, head.gaps, head.alone) for name, head in drawn.heads.items()} == {
        "mnist_tasks/digit": ("class", 10, True, False),
        "mnist_tasks/parity": ("class", 2, True, False),
        "mnist_tasks/ink": ("value", 1, True, False),
        "multimnist/left": ("class", 10, True, False),
        "multimnist/right": ("class", 10, True, False),
    }
    batch = drawn.gather(drawn.draw(9, seeded()))
    assert batch.x.shape == (2, 12, 1, 28, 28)
    for name, y in batch.y.items():
        known = y >= 0 if y.ndim == 2 else ~y.isnan()[..., 0]
        own = 0 if name.startswith("mnist_tasks/") else 1
        assert known[own].all() and not known[1 - own].any()


def test_a_row_is_that_of_its_set(mixed: Callable[..., TableData], sources: dict[str, Any]) -> None:
    data = mixed("multimnist", "mnist_tasks")
    start = 0
    for name in ("multimnist", "mnist_tasks"):
        alone = sources[name].load(CPU)
        for split, rows in alone.splits.items():
            first = start and len(data.splits[split].image) - len(rows.image)
            part = torch.arange(first, first + len(rows.image))
            expected = rows.batch(alone.images, torch.arange(len(rows.image))[None])
            found = data.splits[split].batch(data.images, part[None])
            assert found.x.equal(expected.x)
            assert all(found.y[f"{name}/{head}"].equal(y) for head, y in expected.y.items())
        start += len(alone.images)


def test_test_tasks_are_of_each_set_in_turn_and_see_every_row_once(mixed: Callable[..., TableData]) -> None:
    drawn = mixed("mnist_tasks", "multimnist").episodes("test", 1, 0, 5)
    row = drawn.draw(100, seeded())["row"]
    assert sorted(row.flatten().tolist()) == [*range(40)]
    assert row.lt(20).all(1).tolist() == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    ("sets", "heads", "metric"),
    [
        (["mnist_tasks", "multimnist"], ["digit", "ink"], "mnist_tasks/digit/accuracy"),
        (["mnist_tasks", "multimnist"], ["ink"], "mnist_tasks/ink/mse"),
        (["multimnist", "mnist_tasks"], ["ink"], "accuracy"),
    ],
)
def test_the_first_set_chooses_the_model(
    mixed: Callable[..., TableData], sources: dict[str, Any], sets: list[str], heads: list[str], metric: str
) -> None:
    assert mixed(*sets, mnist_tasks=replace(sources["mnist_tasks"], heads=heads)).metric == metric


def test_a_set_of_one_head_stands_alone(mixed: Callable[..., TableData], sources: dict[str, Any]) -> None:
    heads = (
        mixed("mnist_tasks", "multimnist", mnist_tasks=replace(sources["mnist_tasks"], heads=["ink"]))
        .splits["val"]
        .heads
    )
    assert heads["mnist_tasks/ink"] == Head("value", 1, gaps=True, alone=True)
    assert not heads["multimnist/left"].alone


def test_what_the_sets_say_of_themselves_is_told_of_each(mixed: Callable[..., TableData]) -> None:
    data = mixed("mnist_tasks", "multimnist")
    assert data.protocol["split"].startswith("mnist_tasks: the authors'") and "; multimnist: " in data.protocol["split"]
    assert data.protocol["rotations"] == "none"


def test_the_fingerprint_tells_the_sets_and_their_order(
    mixed: Callable[..., TableData], sources: dict[str, Any]
) -> None:
    other = replace(sources["multimnist"], pairs_seed=1)
    found = [
        mixed("mnist_tasks", "multimnist"),
        mixed("multimnist", "mnist_tasks"),
        mixed("mnist_tasks", "multimnist", multimnist=other),
    ]
    assert len({data.fingerprint for data in found}) == 3
    assert len({data.episodes("test", 1, 0, 5).fingerprint for data in found}) == 3


def test_images_that_stay_on_disk_are_the_same(mixed: Callable[..., TableData], sources: dict[str, Any]) -> None:
    disk = replace(sources["multimnist"], resident=False)
    one, other = mixed("mnist_tasks", "multimnist"), mixed("mnist_tasks", "multimnist", multimnist=disk)
    assert torch.as_tensor(other.images).equal(torch.as_tensor(one.images))


def test_sets_that_do_not_go_together_are_refused(
    mixed: Callable[..., TableData], sources: dict[str, Any], configured: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("a,b\n" + "\n".join(f"{i},{i % 7}" for i in range(30)))
    table = configured("table", root=str(tmp_path / "t.csv"), targets=["b"])
    wrong = replace(sources["mnist_tasks"], heads=["digitt"])
    for sets, others, message in (
        (["mnist_tasks"], {}, "data.sets=[mnist_tasks] names fewer than two data sets"),
        (["mnist_tasks", "mnist_tasks"], {}, "data.sets names the data set mnist_tasks twice"),
        (["mnist_tasks", "table"], {"table": table}, "data.sets: table has inputs of shape [1], mnist_tasks of [1, 28"),
        (["mnist_tasks", "sinusoid"], {"sinusoid": configured("sinusoid")}, "data.sets: sinusoid deals classes or cur"),
        (["mnist_tasks", "multimnist"], {"mnist_tasks": wrong}, "data.keys.mnist_tasks.heads: there is no head digitt"),
    ):
        with pytest.raises(UserError) as error:
            mixed(*sets, **others)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("data.sets=[mnist_tasks,multimist]", "data.sets=multimist: there is no such data. Did you mean multimnist?"),
        ("data.sets=[mnist_tasks,mix]", "data.sets=mix, which itself names data sets. Name one of those."),
        ("data.keys={mnist_task:{heads:[ink]}}", "data.keys names mnist_task, which is none of data.sets. Did you"),
        ("data.keys={mnist_tasks:3}", "data.keys.mnist_tasks=3 holds no keys. Write data.keys={mnist_tasks: {key"),
        (
            "data.keys={mnist_tasks:{haeds:[ink]}}",
            "data.keys.mnist_tasks.haeds is no key here. Did you mean data.keys.",
        ),
        ("data.keys.mnist_tasks.haeds=[ink]", "data.keys.mnist_tasks.haeds is no key here. Did you mean data.keys."),
        ("data.keys={mnist_tasks:{ways:0}}", "data.keys.mnist_tasks.ways=0 is too small. Give 1 or more."),
        ("test.data=mix", "test.data=mix, which itself names data sets. Name one of those."),
    ],
)
def test_a_mistake_in_a_set_is_told_before_anything_is_loaded(
    metarun: Callable[..., Any], typed: str, message: str
) -> None:
    outcome = metarun(*SHORTEST, typed)
    assert outcome.code == 2 and outcome.err.startswith(f"metarun: {message}") and outcome.err.count("\n") == 1


def test_a_run_knows_where_its_sets_lay(
    small_mnist: Any, metarun: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_mnist.write(tmp_path / "data")
    monkeypatch.setenv("METARUN_DATA", "data")
    first = metarun(*SHORTEST, "data.keys.mnist_tasks.heads=[digit,ink]")
    assert first.code == 0, first.err
    heads = json.loads(Path("run/result.json").read_text())["test"]["heads"]
    assert [*heads] == ["mnist_tasks/digit", "mnist_tasks/ink", "multimnist/left", "multimnist/right"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("METARUN_DATA")
    again = metarun(f"resume={tmp_path / 'run'}", "train.steps=3")
    assert again.code == 0, again.err
