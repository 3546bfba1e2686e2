"""The comparison as a table for a terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from metarun.metrics import cell, title
from metarun.report.compare import Comparison, Group, Section
from metarun.report.improvement import SINGLE, main_metrics
from metarun.report.runs import Run

COLUMNS = (
    *("protocol", "group", "algo", "data", "backbone", "metric", "seeds", "mean", "ci95", "ci95_over", "ci95_tasks"),
    *("val", "adapt_steps", "steps", "train_s", "tasks_per_s", "memory_mb"),
    *("difference", "difference_ci95", "difference_seeds", "delta_m", "delta_m_ci95"),
    *("differs", "episodes", "diverged"),
)

# The first that a terminal can miss, before heads.
SPARE = ("MB", "± tasks", "tasks/s", "time", "steps", "adapt steps", "validation")
GAIN = "Δm (%)"
NARROW = 28  # letters to which a group's name may be wrapped


def cells(comparison: Comparison) -> tuple[list[str], list[list[list[str]]]]:
    """The header, and the rows of each section; what says nothing about any group is left out."""
    metrics = {group.metric for group in comparison.groups}
    one = title(*metrics) if len(metrics) == 1 else ""  # else each cell names its own
    header = ["protocol", "group", "seeds", f"test {one}".rstrip(), "± tasks", "to the best", GAIN]
    header += [*map(title, comparison.heads), "validation", "adapt steps", "steps", "time", "tasks/s", "MB"]
    sections = [
        [_row(section, group, comparison.heads, not one) for group in section.groups] for section in comparison.sections
    ]
    rows = [row for section in sections for row in section]
    shown = [any(row[column] for row in rows) for column in range(len(header))]
    shown[0] = len(sections) > 1
    return _only(header, shown), [[_only(row, shown) for row in section] for section in sections]


def terminal(comparison: Comparison, width: int, spell: Callable[[str], str]) -> Table:
    """One table, a rule between protocols, the best of each in bold; columns that do not fit are left out. `spell`
    writes a text in letters that the terminal has."""
    header, sections = cells(comparison)
    widths = [max(map(len, column)) for column in zip(header, *(row for rows in sections for row in rows), strict=True)]
    widths[header.index("group")] = narrow = min(widths[header.index("group")], NARROW)
    shown = [True] * len(header)
    for name in (*SPARE, *map(title, reversed(comparison.heads)), "to the best", GAIN):
        if name in header and sum(w + 3 for w, show in zip(widths, shown, strict=True) if show) > width:
            shown[header.index(name)] = False
    hidden = [name for name, show in zip(header, shown, strict=True) if not show]
    caption = spell(f"a wider terminal also shows: {', '.join(hidden)}") if hidden else None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    for name in _only(header, shown):
        if name == "group":
            table.add_column(name, min_width=narrow, overflow="fold")
        else:
            table.add_column(spell(name), justify="left" if name == "protocol" else "right", no_wrap=True)
    for rows in sections:
        for number, row in enumerate(rows):
            style = "bold" if number == 0 and len(rows) > 1 else None
            table.add_row(*(Text(spell(cell)) for cell in _only(row, shown)), style=style)
        table.add_section()
    return table


def markdown(comparison: Comparison) -> str:
    """A table to paste into a README or an issue."""
    header, sections = cells(comparison)
    rule = [":--" if name in ("protocol", "group") else "--:" for name in header]
    rows = [header, rule, *(row for section in sections for row in section)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def notes(comparison: Comparison) -> list[str]:
    """What the numbers are, and which of them must not be compared."""
    first, *others = comparison.sections
    norm = first.protocol.get("norm")
    lines = [("A: " if others else "") + first.task + (f", {norm}" if norm else "")]
    for section in others:
        lines.append(f"{section.letter}: not comparable with A: {', '.join(section.differs(first))}")
    validated = [
        (section.protocol["data"], g) for section in comparison.sections for g in section.groups if g.runs[0].val
    ]
    if any(group.trained != tested for tested, group in validated):
        lines.append("trained on other data than the test's: validation is on that, too")
    several = [group for group in comparison.groups if len(group.runs) > 1]
    over = {True: "over seeds (Student t)", False: "over test tasks"}
    if several and len(several) < len(comparison.groups):
        lines.append(f"± 95% CI: {over[True]}; of a group with one seed {over[False]}")
    else:
        lines.append(f"± 95% CI {over[bool(several)]}")
    for group in comparison.groups:
        if lost := sum(run.diverged for run in group.runs):
            lines.append(f"{group.label}: {lost:,} test tasks diverged: they count as wrong, and for no loss")
    if several:
        lines.append("± tasks: the 95% CI over test tasks of one run, a mean over seeds")
    if any(group.difference for group in several):
        among = " of the same protocol" if others else ""
        lines.append(f"to the best{among}: paired over shared seeds, ± 95% CI (Student t)")
    return lines + _about_gains(comparison)


def _about_gains(comparison: Comparison) -> list[str]:
    """What Δm is, or how to get it where several heads were trained together."""
    if any(not math.isnan(group.gain[0]) for group in comparison.groups):
        return [f"Δm: mean over heads of the gain over {SINGLE}=true on the same backbone, in percent; ± over seeds"]
    if any(len(main_metrics(group.runs[0])) > 1 for group in comparison.groups):
        return [f"for Δm, the gain over training each head alone, compare with a run of algo=mtl {SINGLE}=true, too"]
    return []


def write_csv(comparison: Comparison, file: Path) -> None:
    """One line for each group; accuracies are fractions, as in all files."""
    first = comparison.sections[0]
    named = [*comparison.heads, *comparison.aside]
    heads = [column for name in named for column in (name, f"{name}_ci95")]
    varied = sorted({key for group in comparison.groups for key in group.chosen} - set(COLUMNS))
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*COLUMNS, *heads, *varied], restval="")
        writer.writeheader()
        for section in comparison.sections:
            for group in section.groups:
                chosen = {key: group.chosen[key] for key in varied if key in group.chosen}
                of_heads = [_exact(number) for name in named for number in group.score(name)]
                record = _record(section, group) | dict(zip(heads, of_heads, strict=True))
                writer.writerow({**record, "differs": "; ".join(section.differs(first)), **chosen})


def _row(section: Section, group: Group, heads: list[str], with_metric: bool) -> list[str]:
    return [
        section.letter,
        group.label,
        str(len(group.runs)),
        cell(group.metric, *group.test) + (f" {title(group.metric)}" if with_metric else ""),
        _known(group.metric, group.mean(_over_tasks)) if len(group.runs) > 1 else "",
        _to_the_best(section, group),
        _percent(*group.gain),
        *(_known(name, *group.score(name)) for name in heads),
        _known(group.metric, group.mean(_validation)),
        _range([run.adapt_steps for run in group.runs]),
        _range([run.steps for run in group.runs]),
        _clock(group.mean(lambda run: run.seconds)),
        _count(group.mean(lambda run: run.tasks_per_s)),
        _count(group.mean(lambda run: run.memory_mb)),
    ]


def _to_the_best(section: Section, group: Group) -> str:
    difference = group.difference
    if difference:
        few = f" ({difference.seeds} seeds)" if difference.seeds < len(group.runs) else ""
        return cell(group.metric, difference.mean, difference.ci95, "+") + few
    return "best" if group is section.groups[0] and any(other.difference for other in section.groups) else ""


def _record(section: Section, group: Group) -> dict[str, object]:
    run, difference = group.runs[0], group.difference
    mean, ci = group.test
    return {
        "protocol": section.letter,
        "group": group.label,
        **run.names,
        "metric": group.metric,
        "seeds": " ".join(str(run.seed) for run in group.runs),
        "mean": _exact(mean),
        "ci95": _exact(ci),
        "ci95_over": "seeds" if len(group.runs) > 1 else "tasks",
        "ci95_tasks": _exact(group.mean(_over_tasks)),
        "val": _exact(group.mean(_validation)),
        "adapt_steps": run.adapt_steps,
        "steps": _exact(group.mean(lambda run: run.steps)),
        "train_s": _exact(group.mean(lambda run: run.seconds)),
        "tasks_per_s": _exact(group.mean(lambda run: run.tasks_per_s)),
        "memory_mb": _exact(group.mean(lambda run: run.memory_mb)),
        "difference": _exact(difference.mean) if difference else "",
        "difference_ci95": _exact(difference.ci95) if difference else "",
        "difference_seeds": difference.seeds if difference else "",
        "delta_m": _exact(group.gain[0]),
        "delta_m_ci95": _exact(group.gain[1]),
        "episodes": run.protocol.get("episodes", ""),
        "diverged": sum(run.diverged for run in group.runs),
    }


def _over_tasks(run: Run) -> float:
    return run.test.ci95


def _validation(run: Run) -> float | None:
    return run.val.mean if run.val else None


def _known(name: str, mean: float, ci95: float = math.nan) -> str:
    """The cell of a score; empty where it is not known."""
    return "" if math.isnan(mean) else cell(name, mean, ci95)


def _percent(gain: float, ci95: float) -> str:
    """`+1.25 ± 0.40`, `-0.31`: a gain in percent."""
    told = "" if math.isnan(gain) else f"{100 * gain:+z.2f}"
    return told if math.isnan(ci95) else f"{told} ± {100 * ci95:.2f}"


def _range(numbers: list[int | None]) -> str:
    known = [number for number in numbers if number is not None]
    return "-".join(f"{number:,}" for number in sorted({min(known), max(known)})) if known else ""


def _clock(seconds: float) -> str:
    """`22s`, `4:05`, `1:02:03`."""
    if math.isnan(seconds):
        return ""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}" if minute else f"{second}s"


def _count(number: float) -> str:
    return "" if math.isnan(number) else f"{number:,.0f}"


def _exact(number: float) -> float | str:
    return "" if math.isnan(number) else number


def _only(row: list[str], shown: list[bool]) -> list[str]:
    return [cell for cell, show in zip(row, shown, strict=True) if show]
