from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import compression, transfer
from benchmarks.transfer import panels
from metarun.errors import UserError
from metarun.report.interval import mean_t
from metarun.report.runs import Run, find


def write(folder: Path, accuracy: float, mode: str | None, shots: int, seed: int = 0, **more: Any) -> None:
    """A finished run's result, as far as it is read."""
    episodes = more.pop("episodes", f"sha256:{shots}")
    record = {
        **{"status": "completed", "algo": "transfer", "backbone": "conv4", "seed": seed},
        "data": more.pop("trained", "omniglot"),
        "metric": "accuracy",
        "test": {"accuracy": {"mean": accuracy, "ci95": 0.03, "tasks": 600}, "by_step": []},
        "protocol": {"episodes": episodes},
    }
    (folder / ".hydra").mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(record))
    config = {"algo": {"mode": mode, "source": more.pop("source", None)}, "data": {"shots": shots, **more}}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))


def runs(folder: Path) -> list[Run]:
    return [run for run in find([folder]) if isinstance(run, Run)]


def test_a_gain_is_over_the_run_from_scratch_of_the_same_seed(tmp_path: Path) -> None:
    base, model = [0.50, 0.60, 0.55], [0.70, 0.78, 0.77]
    for seed in range(3):
        write(tmp_path / f"s{seed}", base[seed], None, 1, seed)
        write(tmp_path / f"m{seed}", model[seed], "model", 1, seed)
    write(tmp_path / "s5", 0.7, None, 5)
    write(tmp_path / "f5", 0.8, "feature", 5)
    (panel,) = panels(runs(tmp_path))
    assert panel.places == ["1", "5"] and panel.images == "shots"
    assert panel.gains["model"]["1"] == pytest.approx(mean_t([0.20, 0.18, 0.22]))
    assert panel.scores["scratch"]["1"] == pytest.approx(mean_t(base))
    assert panel.gains["feature"]["5"] == pytest.approx((0.1, 0.03 * 2**0.5))  # one run each: over tasks
    assert panel.scores["feature"]["5"] == (0.8, 0.03)


def test_few_training_images_are_a_panel_of_their_own_with_all_of_them_last(tmp_path: Path) -> None:
    for examples in (None, 20, 5):
        write(tmp_path / f"{examples}", 0.9, None, 0, examples=examples)
    write(tmp_path / "shots", 0.9, None, 1)
    found = {panel.images: panel.places for panel in panels(runs(tmp_path))}
    assert found == {"training images of each class": ["5", "20", "all"], "shots": ["1"]}


def test_a_panel_is_of_the_data_at_the_end_of_a_chain_of_sources(tmp_path: Path) -> None:
    glyphs, other = str(tmp_path / "elsewhere" / "glyphs"), str(tmp_path / "elsewhere" / "omniglot")
    write(Path(glyphs), 0.9, None, 1, trained="glyphs")
    write(Path(other), 0.9, None, 1)
    write(tmp_path / "runs" / "scratch", 0.5, None, 1)
    write(tmp_path / "runs" / "model", 0.6, "model", 1, source=glyphs)
    write(tmp_path / "runs" / "target", 0.7, "target", 1, source=str(tmp_path / "runs" / "model"))
    write(tmp_path / "runs" / "feature", 0.8, "feature", 1, source=other)
    found = {panel.title: panel.gains for panel in panels(runs(tmp_path / "runs"))}
    assert {title: sorted(gains) for title, gains in found.items()} == {
        "glyphs to omniglot": ["model", "target"],
        "omniglot to omniglot": ["feature"],
    }
    write(tmp_path / "runs" / "again", 0.9, "model", 1, source=glyphs)
    with pytest.raises(UserError, match="one point, and have one seed"):
        panels(runs(tmp_path / "runs"))


def test_runs_that_were_tested_on_different_episodes_give_no_gain(tmp_path: Path) -> None:
    write(tmp_path / "a", 0.5, None, 1)
    write(tmp_path / "b", 0.6, "model", 1, episodes="sha256:other")
    with pytest.raises(UserError, match="different episodes"):
        panels(runs(tmp_path))
    with pytest.raises(UserError, match=r"no finished run of algo=transfer in .*nothing"):
        transfer.main([str(tmp_path / "nothing"), str(tmp_path / "figure.png")])


def test_a_finished_run_is_drawn_and_its_network_is_timed(
    quick: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quick("algo=transfer", "hydra.run.dir=run").code == 0
    transfer.main(["run", "figure.png"])
    assert Path("figure.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    compression.main(["run", "run", "--repeats=1", "--seconds=0.001"])
    head, one, other = capsys.readouterr().out.splitlines()
    assert "parameters" in head and "kB" in head
    learned = json.loads(Path("run/result.json").read_text())["params"]  # one value, in training as in the test
    assert one.split()[:1] == ["run"] and f" {learned} " in one and f" {4 * learned / 1000:.1f} " in other
    with pytest.raises(UserError, match="nowhere holds no finished run"):
        compression.main(["nowhere"])
