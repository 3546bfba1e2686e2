"""The campaign itself: it passes what is in order, and finds what was broken on purpose."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from benchmarks.faults import inputs
from benchmarks.faults.__main__ import attempt, table
from benchmarks.faults.checks import completed, refused, same, whole
from benchmarks.faults.place import Place, Server, Shared
from benchmarks.faults.variants import GLYPHS, MLP, SHORT, must

PYTHON = (sys.executable,)
SMALL = f"algo=maml algo.first_order=true {GLYPHS} {MLP} train.tasks=2 {SHORT}"
BROKEN = "import sys; print('metarun: one'); sys.exit({}[2])"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def place(server: Server, tmp_path: Path) -> Place:
    return Place(server, tmp_path / "case", Shared(tmp_path / "shared"), Random(0))


@pytest.fixture(scope="module")
def unbroken(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    place = Place(server, folder, Shared(folder / "shared"), Random(0))
    must(place.run(*SMALL.split(), "train.steps=6", "val.every=3", "hydra.run.dir=run", cwd=folder))
    return folder / "run"


def halved(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def doubled(file: Path) -> None:
    file.write_bytes(file.read_bytes() + file.read_bytes().splitlines(keepends=True)[-1])


def moved(file: Path) -> None:
    state = torch.load(file, weights_only=True)
    next(iter(state["params"].values())).view(-1)[0] += 1e-7
    torch.save(state, file)


def unfinished(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "status": "interrupted"}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("checkpoints/last.pt", halved),
        ("checkpoints/best.pt", moved),
        (".hydra/config.yaml", halved),
        (".hydra/overrides.yaml", lambda file: file.write_text("")),
        ("metrics.jsonl", doubled),
        ("result.json", halved),
        ("result.json", unfinished),
    ],
)
def test_a_run_is_as_the_unbroken_one_until_it_is_damaged(
    unbroken: Path, tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    run = shutil.copytree(unbroken, tmp_path / "run")
    assert whole(run, unbroken) + same(run, unbroken) == []
    damage(run / name)
    assert whole(run, unbroken) + same(run, unbroken) != []


def test_a_fork_speaks_and_ends_as_a_process_of_its_own(place: Place) -> None:
    forked, fresh = place.run("algo=nope"), place.run("-m", "metarun", "algo=nope", program=PYTHON)
    assert (forked.code, forked.out, forked.err) == (fresh.code, fresh.out, fresh.err)
    assert forked.code == 2 and refused(forked) == []


def test_a_traceback_a_hang_and_a_glutton_are_found(place: Place) -> None:
    assert "KeyError" in completed(place.run("-c", BROKEN, program=PYTHON))[0].came
    assert "still running" in completed(place.run("-c", "while True: pass", program=PYTHON, seconds=0.2))[0].came
    greedy = "kept = bytearray(b'x') * 10**9; import time; time.sleep(60)"
    assert "200 MB of memory" in completed(place.run("-c", greedy, program=PYTHON, memory=200))[0].came


def test_a_disk_that_fails_is_told_and_no_file_is_left_half(place: Place) -> None:
    folder = place.folder / "in" / "here" / "run"
    fault = {"folder": str(folder / "checkpoints"), "error": "EIO", "at": 6, "lasting": True}
    ended = place.run(*SMALL.split(), "hydra.run.dir=run", fault=fault)
    assert ended.code == 2 and "Input/output error" in ended.err
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"
    assert not [*folder.rglob("*.tmp")]


def test_the_same_seed_and_number_are_the_same_command_line(place: Place) -> None:
    def lines() -> list[list[str]]:
        place.random = Random("1/inputs/2")
        return [inputs.drawn(place).words for _ in range(10)]

    first = lines()
    assert lines() == first and len({*map(tuple, first)}) > 6


def test_a_case_that_falls_short_is_counted_and_keeps_its_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(place: Place) -> inputs.Typed:
        return inputs.Typed([], ["--version"], must_fail=True)

    monkeypatch.setattr(inputs, "drawn", wrong)
    tried = attempt("inputs", 0, 0, server, tmp_path, Shared(tmp_path / "shared"))
    assert [short.came for short in tried.short] == ["exit code 0"] and "metarun --version" in tried.story[0]
    (row,) = table([tried])
    assert (row["tried"], row["fine"], row["short"]) == (1, 0, 1)
    assert (tmp_path / "inputs" / "0" / "1.out").exists()
