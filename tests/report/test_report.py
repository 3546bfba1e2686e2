"""metarun report: numbers by hand, nothing compared or dropped silently."""

from __future__ import annotations

import csv
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metarun.cli import report
from metarun.errors import UserError
from metarun.report.compare import compare
from metarun.report.interval import mean_t, t_975
from metarun.report.plot import panels, write_plot
from metarun.report.runs import Missing, Run, find

PROTOCOL = {"ways": 5, "shots": 1, "queries": 1, "norm": "none", "adapt_steps": 3, "episodes": "sha256:aaaaaaaaaaaa"}


def write_run(folder: Path, mean: float | None, typed: tuple[str, ...] = (), **changes: Any) -> Path:
    """A finished run as metarun leaves it; `typed` are its overrides."""
    score = {"mean": mean, "ci95": 0.02, "tasks": 100}
    record = {
        **{"status": "completed", "error": None, "algo": "maml", "data": "omniglot", "backbone": "conv4"},
        **{"seed": 0, "steps": 20, "test": {"loss": score, "accuracy": score}, "val": {"accuracy": score, "step": 20}},
        **{"protocol": PROTOCOL, "cost": {"train_s": 65.0, "tasks_per_s": 1000.0, "peak_memory_mb": 512.0}},
        **{"aside": ["name", "chunk", "device.type"]},
        **changes,
    }
    (folder / ".hydra").mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(record))
    typed = (f"algo={record['algo']}", f"seed={record['seed']}", *typed)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {t}\n" for t in typed))
    config: dict[str, Any] = {"algo": {"inner_lr": 0.4}, "train": {"steps": 20}, "name": str(folder)}
    choices = {}
    for key, _, value in (t.partition("=") for t in typed):
        section, _, rest = key.partition(".")
        if rest:
            config.setdefault(section, {})[rest] = json.loads(value)
        elif key in ("algo", "device"):
            choices[key] = value
        else:
            config[key] = json.loads(value)
    (folder / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": {"runtime": {"choices": choices}}}))
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(config))
    rows = [{"step": step, "val/accuracy": 0.5 + step / 100} for step in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3')
    return folder


def seeds(home: Path, algo: str, means: list[float], **changes: Any) -> None:
    for seed, mean in enumerate(means):
        write_run(home / f"{algo}_{seed}", mean, algo=algo, seed=seed, **changes)


def runs(home: Path) -> list[Run]:
    return [run for run in find([home]) if isinstance(run, Run)]


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert report.main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("freedom", "t"),
    [
        (1, math.tan(0.475 * math.pi)),  # T of one degree of freedom is Cauchy
        (2, 0.95 * math.sqrt(2 / (1 - 0.95**2))),
        (3, 3.182446),
        (4, 2.776445),
        (9, 2.262157),
        (30, 2.042272),
    ],
)
def test_quantiles_of_student_t(freedom: int, t: float) -> None:
    assert t_975(freedom) == pytest.approx(t, rel=1e-6)


def test_interval_over_three_seeds_by_hand() -> None:
    mean, ci = mean_t([0.6, 0.7, 0.8])  # s = 0.1
    assert mean == pytest.approx(0.7)
    assert ci == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)


def test_one_seed_keeps_its_interval_over_tasks_and_several_get_one_over_seeds(tmp_path: Path) -> None:
    seeds(tmp_path, "maml", [0.6, 0.7, 0.8])
    seeds(tmp_path, "reptile", [0.5])
    maml, reptile = compare(runs(tmp_path)).groups
    assert maml.test == pytest.approx((0.7, 0.2484138), rel=1e-5)
    assert reptile.test == (0.5, 0.02)


def test_difference_is_paired_over_shared_seeds(tmp_path: Path) -> None:
    seeds(tmp_path, "maml", [0.60, 0.70, 0.80])
    seeds(tmp_path, "reptile", [0.55, 0.63])  # -0.05 and -0.07: mean -0.06, s 0.01 √2, t(1) 12.706
    seeds(tmp_path, "mtl", [0.3])
    best, second, alone = compare(runs(tmp_path)).groups
    assert best.difference is None and alone.difference is None
    assert second.difference is not None and second.difference.seeds == 2
    assert second.difference.mean == pytest.approx(-0.06)
    assert second.difference.ci95 == pytest.approx(12.7062 * 0.01, rel=1e-5)


@pytest.mark.parametrize(("metric", "order"), [("accuracy", ["b", "a", "c"]), ("mse", ["a", "b", "c"])])
def test_best_first_and_nan_last(tmp_path: Path, metric: str, order: list[str]) -> None:
    for algo, mean in (("a", 0.2), ("b", 0.9), ("c", None)):
        write_run(tmp_path / algo, mean, algo=algo, test={metric: {"mean": mean, "ci95": 0.1, "tasks": 9}}, val=None)
    assert [group.label for group in compare(runs(tmp_path)).groups] == order


def test_groups_are_told_apart_by_what_was_typed_and_differs(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0.8, ("train.steps=20",))
    write_run(tmp_path / "b", 0.7, ("algo.inner_lr=0.1", "train.steps=20"))
    write_run(tmp_path / "c", 0.6, ("algo.inner_lr=0.4", "train.steps=20"), seed=1)  # the default, typed
    comparison = compare(runs(tmp_path))
    found = {group.label: [run.seed for run in group.runs] for group in comparison.groups}
    assert found == {"maml algo.inner_lr=0.4": [0, 1], "maml algo.inner_lr=0.1": [0]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"episodes": "sha256:bbbbbbbbbbbb"}, "episodes bbbbbbbb (A: aaaaaaaa)"),
        ({"shots": 5}, "shots 5 (A: 1)"),
        ({"norm": "batch"}, "norm batch (A: none)"),
    ],
)
def test_another_protocol_is_marked_and_its_key_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], told: str
) -> None:
    seeds(tmp_path, "maml", [0.6, 0.7])
    seeds(tmp_path, "mtl", [0.5, 0.6])
    seeds(tmp_path, "reptile", [0.95, 0.96], protocol=PROTOCOL | change)
    out = said(capsys, tmp_path)
    assert f"B: not comparable with A: {told}" in out
    rows = [line.split()[:2] for line in out.splitlines() if line.startswith((" A ", " B "))]
    assert rows == [["A", "maml"], ["A", "mtl"], ["B", "reptile"]]  # the highest number does not lead
    assert all(group.difference is None for group in compare(runs(tmp_path)).sections[1].groups)


def test_what_an_algorithm_chose_silently_is_told_where_it_differs_and_keeps_runs_comparable(tmp_path: Path) -> None:
    own = {"algo.inner_loss": "mean", "algo.adapt_norm": True, "val.episodes": "sha256:cccccccccccc"}
    write_run(tmp_path / "a", 0.8, ("train.steps=20",), protocol=PROTOCOL | own)
    write_run(tmp_path / "b", 0.7, ("train.steps=30",), protocol=PROTOCOL | own | {"algo.adapt_norm": False})
    write_run(tmp_path / "c", 0.6, algo="protonet", protocol=PROTOCOL | {"algo.trains_on": "episodes"})
    (section,) = compare(runs(tmp_path)).sections
    assert [group.label for group in section.groups] == [
        "maml train.steps=20 algo.adapt_norm=True",
        "maml train.steps=30 algo.adapt_norm=False",
        "protonet",
    ]


def test_runs_on_other_training_data_are_no_seeds_of_one_group(tmp_path: Path) -> None:
    for seed, content in enumerate(("sha256:aaaa", "sha256:bbbb")):
        write_run(tmp_path / f"{seed}", 0.8, seed=seed, protocol=PROTOCOL | {"train.content": content})
    (section,) = compare(runs(tmp_path)).sections
    assert sorted(group.label for group in section.groups) == [
        "maml train.content=sha256:aaaa",
        "maml train.content=sha256:bbbb",
    ]


def test_tasks_that_diverged_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = {"accuracy": {"mean": 0.8, "ci95": 0.02, "tasks": 100}}
    for seed, lost in enumerate((3, 0)):
        write_run(tmp_path / f"{seed}", 0.8, seed=seed, test={**score, "tasks": 100, "diverged": lost})
    out = said(capsys, tmp_path, "--csv", tmp_path / "table.csv")
    assert "maml: 3 test tasks diverged: they count as wrong" in out
    with (tmp_path / "table.csv").open(newline="") as stream:
        assert [row["diverged"] for row in csv.DictReader(stream)] == ["3"]


def test_seeds_of_different_protocols_are_never_averaged(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0.8)
    write_run(tmp_path / "b", 0.7, seed=1, protocol=PROTOCOL | {"norm": "batch"})
    assert [len(group.runs) for group in compare(runs(tmp_path)).groups] == [1, 1]


def test_adaptation_steps_are_a_methods_own_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", 0.8)
    write_run(tmp_path / "b", 0.7, algo="transfer", protocol=PROTOCOL | {"adapt_steps": 50})
    out = said(capsys, tmp_path)
    assert "not comparable" not in out and "adapt steps" in out and " 50 " in out


def test_what_cannot_be_compared_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "good", 0.8)
    write_run(tmp_path / "failed", 0.9, status="failed", error="Traceback:\n  line\nValueError: no luck", test=None)
    write_run(tmp_path / "stopped", 0.9, status="interrupted", test=None)
    write_run(tmp_path / "bare", 0.9, test={})
    (write_run(tmp_path / "torn", 0.9) / "result.json").write_text('{"status": ')
    (write_run(tmp_path / "list", 0.9) / "result.json").write_text("[1]")
    (write_run(tmp_path / "running", 0.9) / "result.json").unlink()
    out = said(capsys, tmp_path)
    assert "left out: 6 runs" in out
    assert f"{tmp_path / 'failed'}: failed: ValueError: no luck" in out
    assert f"{tmp_path / 'stopped'}: interrupted" in out
    assert f"{tmp_path / 'running'}: no result.json" in out
    for name in ("torn", "list", "bare"):
        assert sum(str(tmp_path / name / "result.json") + ": unreadable" in line for line in out.splitlines()) == 1
    assert "80.00 ± 2.00" in out and "90.00" not in out


def test_a_repeated_seed_counts_once_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(write_run(tmp_path / "old", 0.5) / "result.json", (1, 1))
    write_run(tmp_path / "new", 0.7)
    out = said(capsys, tmp_path, tmp_path / "old")  # the second folder lies in the first: no third run
    assert "70.00 ± 2.00" in out and "50.00" not in out
    assert out.count("left out:") == 1 and str(tmp_path / "old") in out


def test_a_repeated_meta_test_is_a_group_of_its_own(tmp_path: Path) -> None:
    record = json.loads((write_run(tmp_path / "a", 0.8) / "result.json").read_text()) | {"steps": 0, "cost": None}
    (tmp_path / "a" / "result-test.adapt_steps=10.json").write_text(json.dumps(record))
    labels = {group.label for group in compare(runs(tmp_path)).groups}
    assert labels == {"maml", "maml tested again=test.adapt_steps=10"}


def repeated(folder: Path, name: str, **protocol: Any) -> None:
    """The meta-test of the run in that folder once more, under another protocol."""
    record = json.loads((folder / "result.json").read_text())
    record["protocol"] = {**record["protocol"], "episodes": f"sha256:{name}", **protocol}
    (folder / f"result-{name}.json").write_text(json.dumps(record))


def test_a_test_on_other_data_names_what_was_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", 0.8)
    write_run(tmp_path / "b", 0.7, data="glyphs")
    repeated(tmp_path / "b", "test.data=omniglot", test_data="omniglot", episodes=PROTOCOL["episodes"])
    out = said(capsys, tmp_path)
    rows = [line for line in out.splitlines() if line.startswith((" A ", " B "))]
    assert [" ".join(row.split()[:2]) for row in rows] == ["A maml", "A maml", "B maml"]
    assert "A: omniglot, 5-way 1-shot, 100 test tasks" in out and "maml trained on glyphs" in rows[1]
    assert "validation is on that" not in out
    groups = {group.label: group for group in compare(runs(tmp_path)).groups}
    (again,) = (group for label, group in groups.items() if "trained on" in label)
    assert again.runs[0].val is None and groups["maml glyphs"].runs[0].val is not None


def test_a_curve_is_titled_by_the_data_it_was_validated_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", 0.8)
    write_run(tmp_path / "b", 0.7, data="glyphs", protocol=PROTOCOL | {"test_data": "omniglot"})  # trained to do so
    found = {panel.title: [group.label for group in panel.groups] for panel in panels(compare(runs(tmp_path)))}
    assert found == {
        "omniglot, 5-way 1-shot": ["maml omniglot"],
        "glyphs, 5-way 1-shot; tested on omniglot": ["maml trained on glyphs"],
    }
    assert "trained on other data than the test's: validation is on that, too" in said(capsys, tmp_path)


def test_a_repeated_meta_test_has_no_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", 0.8)
    repeated(tmp_path / "a", "test.shots=5", shots=5)
    (panel,) = panels(compare(runs(tmp_path)))
    assert panel.title == "omniglot, 5-way 1-shot" and len(panel.groups) == 1
    assert "without a curve" not in said(capsys, tmp_path, "--plot", tmp_path / "curves.png")
    (tmp_path / "a" / "result.json").unlink()
    with pytest.raises(UserError, match="no curves to draw"):
        report.main([str(tmp_path), "--plot", str(tmp_path / "curves.png")])


def test_what_a_run_says_changes_nothing_is_left_aside(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0.8, ("chunk=4",))
    write_run(tmp_path / "b", 0.7, ("chunk=16", "device=cuda", "device.type=1"), seed=1)
    assert [[run.seed for run in group.runs] for group in compare(runs(tmp_path)).groups] == [[0, 1]]


def test_a_choice_counts_as_long_as_a_key_of_its_section_does(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0.8, ("device=cpu", "device.type=0", "device.rounds=1"))
    write_run(tmp_path / "b", 0.7, ("device=cuda", "device.type=1", "device.rounds=1"), seed=1)
    assert [group.label for group in compare(runs(tmp_path)).groups] == ["maml device=cpu", "maml device=cuda"]


def test_a_run_that_leaves_nothing_aside_is_told_apart_by_all_but_its_seed(tmp_path: Path) -> None:
    record = json.loads((write_run(tmp_path / "a", 0.8, ("name=1", "chunk=4")) / "result.json").read_text())
    write_run(tmp_path / "b", 0.7, ("name=1", "chunk=4"), seed=1)
    write_run(tmp_path / "c", 0.6, ("name=1", "chunk=16"), seed=2)
    del record["aside"]
    for seed, name in enumerate("abc"):
        (tmp_path / name / "result.json").write_text(json.dumps(record | {"seed": seed}))
    found = {group.label: [run.seed for run in group.runs] for group in compare(runs(tmp_path)).groups}
    assert found == {"maml chunk=4": [0, 1], "maml chunk=16": [2]}


def of_heads(digit: float, ink: float) -> dict[str, Any]:
    """A meta-test of two heads, with the overall metrics."""
    right, error = ({"mean": mean, "ci95": 0.02, "tasks": 100} for mean in (digit, ink))
    lost = {"mean": 7.0, "ci95": 0.1, "tasks": 100}
    heads = {"digit": {"accuracy": right, "loss": lost}, "ink": {"mse": error, "loss": error}}
    return {"loss": lost, "accuracy": right, "mse": error, "heads": heads}


def write_heads(folder: Path, digit: float, ink: float, **changes: Any) -> None:
    write_run(folder, None, test=of_heads(digit, ink), val=of_heads(digit, ink) | {"step": 20}, **changes)
    rows = [{"step": step, "val/accuracy": 0.5, "val/digit/accuracy": digit, "val/ink/mse": ink} for step in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (
            "accuracy",
            {"test accuracy (%)": "90.00 ± 2.00", "digit accuracy (%)": "90.00 ± 2.00", "ink mse": "0.4000 ± 0.0200"},
        ),
        ("digit/accuracy", {"test digit accuracy (%)": "90.00 ± 2.00", "ink mse": "0.4000 ± 0.0200"}),
        ("ink/mse", {"test ink mse": "0.4000 ± 0.0200", "digit accuracy (%)": "90.00 ± 2.00"}),
        (
            None,
            {"test accuracy (%)": "90.00 ± 2.00", "digit accuracy (%)": "90.00 ± 2.00", "ink mse": "0.4000 ± 0.0200"},
        ),
    ],
)
def test_the_primary_metric_ranks_and_every_other_head_has_a_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: str | None, told: dict[str, str]
) -> None:
    write_heads(tmp_path / "a", 0.9, 0.4, algo="a", metric=metric)
    write_heads(tmp_path / "b", 0.8, 0.3, algo="b", metric=metric)
    lines = [line for line in said(capsys, tmp_path, "--markdown").splitlines() if line.startswith("|")]
    header, _, *rows = [line.strip("| ").split(" | ") for line in lines]
    assert [row[0] for row in rows] == (["b", "a"] if metric == "ink/mse" else ["a", "b"])
    of_a = next(row for row in rows if row[0] == "a")
    assert dict(zip(header[2:-6], of_a[2:-6], strict=True)) == told


def test_a_primary_metric_that_the_test_lacks_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0.8, metric="left/accuracy")
    (missing,) = find([tmp_path])
    assert isinstance(missing, Missing) and "its test has no left/accuracy" in missing.why


def test_heads_stand_in_the_csv_with_their_intervals_over_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, ink in enumerate((0.2, 0.3, 0.4)):
        write_heads(tmp_path / f"{seed}", 0.9, ink, seed=seed)
    write_run(tmp_path / "bare", 0.5, algo="mtl")
    said(capsys, tmp_path, "--csv", tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as stream:
        heads, bare = csv.DictReader(stream)
    assert (float(heads["ink/mse"]), float(heads["ink/mse_ci95"])) == pytest.approx(mean_t([0.2, 0.3, 0.4]))
    assert float(heads["digit/accuracy"]) == pytest.approx(0.9)
    assert (bare["ink/mse"], bare["digit/accuracy_ci95"]) == ("", "")


def test_the_steps_that_were_taken_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = {"accuracy": {"mean": 0.8, "ci95": 0.02, "tasks": 100}}
    write_run(tmp_path / "a", 0.8, test={**score, "adapt_steps": 1})
    header, _, row = said(capsys, tmp_path, "--markdown").splitlines()[:3]
    assert dict(zip(header.split("|"), row.split("|"), strict=True))[" adapt steps "] == " 1 "


def test_csv_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds(tmp_path, "maml", [0.6, 0.7, 0.8])
    seeds(tmp_path, "reptile", [0.5, 0.7])
    file = tmp_path / "table.csv"
    said(capsys, tmp_path, "--csv", file)
    with file.open(newline="") as stream:
        best, second = csv.DictReader(stream)
    (maml, reptile) = compare(runs(tmp_path)).groups
    assert (float(best["mean"]), float(best["ci95"])) == maml.test
    assert (best["seeds"], best["ci95_over"], best["difference"]) == ("0 1 2", "seeds", "")
    assert reptile.difference is not None and float(second["difference"]) == reptile.difference.mean
    assert second["episodes"] == PROTOCOL["episodes"]


def test_markdown_table_has_as_many_cells_in_each_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds(tmp_path, "maml", [0.6, 0.7])
    seeds(tmp_path, "reptile", [0.5, 0.5])
    rows = [line for line in said(capsys, tmp_path, "--markdown").splitlines() if line.startswith("|")]
    assert len(rows) == 4 and len({row.count("|") for row in rows}) == 1
    assert "| maml | 2 | 65.00 ± 63.53 | 2.00 | best |" in rows[2] and rows[2].endswith("| 1:05 | 1,000 | 512 |")


def test_plot_is_a_png_one_can_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds(tmp_path, "maml", [0.6, 0.7])
    (write_run(tmp_path / "mtl", 0.5, algo="mtl") / "metrics.jsonl").unlink()
    file = tmp_path / "curves.png"
    out = said(capsys, tmp_path, "--plot", file)
    head = file.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    assert 600 < width < 2000 and 400 < height < 1200
    assert "without a curve: mtl" in out


def test_heads_have_a_panel_each(tmp_path: Path) -> None:
    write_heads(tmp_path / "a", 0.9, 0.4, metric="digit/accuracy")
    write_heads(tmp_path / "b", 0.8, 0.3, metric="digit/accuracy", seed=1)
    comparison = compare(runs(tmp_path))
    assert write_plot(comparison, tmp_path / "one.png") == []
    assert {panel.metric: panel.curves for panel in panels(comparison)} == {
        "digit/accuracy": ({10: [90.0, 80.0], 20: [90.0, 80.0]},),
        "ink/mse": ({10: [0.4, 0.3], 20: [0.4, 0.3]},),
    }


def test_mistakes_are_one_line_with_exit_code_2(tmp_path: Path, metarun: Callable[..., Any]) -> None:
    write_run(tmp_path / "run", 0.5)
    (tmp_path / "empty").mkdir()
    for arguments in (
        ["nowhere"],
        [str(tmp_path / "empty")],
        ["--csv"],
        ["--wrong"],
        [str(tmp_path), "--plot", "curves.exe"],
        [str(tmp_path), "--csv", str(tmp_path / "no" / "table.csv")],
    ):
        told = metarun("report", *arguments)
        assert told.code == 2
        assert told.err.startswith("metarun: ") and told.err.count("\n") == 1 and told.out == ""


def test_help_and_the_default_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--plot FILE" in said(capsys, "--help")
    write_run(tmp_path / "outputs" / "run", 0.5)
    monkeypatch.chdir(tmp_path)
    assert "50.00 ± 2.00" in said(capsys)


def test_an_empty_or_foreign_folder_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "results.json").write_text("{}")
    assert list(find([tmp_path])) == []
    (tmp_path / "photos" / "metrics.jsonl").write_text("")
    assert isinstance(next(find([tmp_path])), Missing)


def test_it_starts_without_torch_and_matplotlib() -> None:
    code = "import sys, metarun.cli.report; sys.exit(bool({'torch', 'matplotlib', 'hydra'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


ALONE = ("algo.single_task=true",)


def gains(home: Path) -> dict[str, tuple[float, float]]:
    return {group.label: group.gain for group in compare(runs(home)).groups}


def test_delta_m_is_the_mean_over_heads_of_the_relative_gain_over_single_task_training(tmp_path: Path) -> None:
    """Single: digit 0.80, ink 0.40 (means over seeds). Joint: (0.88/0.80 - 1 + 1 - 0.30/0.40) / 2 = 0.175 of seed 0,
    (0.84/0.80 - 1 + 1 - 0.44/0.40) / 2 = -0.025 of seed 1."""
    for seed, (digit, ink) in enumerate([(0.78, 0.5), (0.82, 0.3)]):
        write_heads(tmp_path / f"alone{seed}", digit, ink, typed=ALONE, algo="mtl", seed=seed)
    for seed, (digit, ink) in enumerate([(0.88, 0.30), (0.84, 0.44)]):
        write_heads(tmp_path / f"joint{seed}", digit, ink, algo="mtl", seed=seed)
    found = gains(tmp_path)
    assert found["mtl"] == pytest.approx(mean_t([0.175, -0.025]))
    assert found["mtl algo.single_task=True"][0] == pytest.approx(0, abs=1e-12)


def test_delta_m_takes_the_best_single_task_training_of_the_same_backbone_and_protocol(tmp_path: Path) -> None:
    joint = {"algo": "mtl"}
    write_heads(tmp_path / "joint", 0.9, 0.2, **joint)
    write_heads(tmp_path / "worse", 0.5, 0.4, typed=(*ALONE, "train.steps=5"), **joint)
    write_heads(tmp_path / "better", 0.6, 0.4, typed=ALONE, **joint)
    write_heads(tmp_path / "other", 0.8, 0.4, typed=ALONE, **joint, backbone="mlp")
    write_heads(tmp_path / "mlp", 0.8, 0.3, **joint, backbone="mlp", seed=3)
    write_heads(tmp_path / "elsewhere", 0.8, 0.4, **joint, protocol=PROTOCOL | {"episodes": "sha256:b"})
    found = {run.folder.name: group.gain[0] for group in compare(runs(tmp_path)).groups for run in group.runs}
    assert found["joint"] == pytest.approx((0.9 / 0.6 - 1 + 0.5) / 2)
    assert found["worse"] == pytest.approx((0.5 / 0.6 - 1) / 2)
    assert found["mlp"] == pytest.approx((0 + 0.25) / 2)
    assert found["better"] == 0 and math.isnan(found["elsewhere"])


def test_delta_m_has_a_column_where_a_run_of_single_tasks_is_compared_and_else_a_line_says_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_heads(tmp_path / "joint", 0.9, 0.3, algo="mtl")
    how = f"compare with a run of algo=mtl {ALONE[0]}, too"
    for form in ([], ["--markdown"]):
        shown = said(capsys, tmp_path, *form)
        assert how in shown and "Δm (%)" not in shown
    write_heads(tmp_path / "alone", 0.8, 0.4, typed=ALONE, algo="mtl")
    for form in ([], ["--markdown"]):
        shown = said(capsys, tmp_path, *form)
        assert how not in shown and "Δm (%)" in shown and "+18.75" in shown and "Δm: mean over heads" in shown
    said(capsys, tmp_path, "--csv", tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as stream:
        joint, alone = csv.DictReader(stream)
    assert (float(joint["delta_m"]), joint["delta_m_ci95"]) == (pytest.approx(0.1875), "")
    assert float(alone["delta_m"]) == 0


def test_one_head_is_held_against_itself_alone_and_runs_of_other_heads_have_no_delta_m(tmp_path: Path) -> None:
    write_run(tmp_path / "joint", 0.9, algo="mtl")
    write_run(tmp_path / "alone", 0.6, typed=ALONE, algo="mtl")
    assert gains(tmp_path)["mtl"][0] == pytest.approx(0.5)
    write_heads(tmp_path / "two", 0.9, 0.3, algo="a", metric="accuracy")
    write_heads(tmp_path / "none", 0.9, 0.0, typed=ALONE, algo="a", backbone="mlp", metric="accuracy")
    found = gains(tmp_path)
    assert all(math.isnan(gain[0]) for label, gain in found.items() if label.startswith("a mlp"))


def test_metrics_that_tables_leave_out_stand_in_the_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = of_heads(0.9, 0.4)
    test["heads"]["ink"]["r2"] = {"mean": 0.75, "ci95": 0.05, "tasks": 100}
    write_run(tmp_path / "a", None, test=test, val=None)
    assert "r2" not in said(capsys, tmp_path, "--csv", tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["ink/r2"], row["ink/r2_ci95"]) == ("0.75", "0.05")
