"""`metarun report`: compares finished runs in a table, and writes files that were asked for."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from rich.console import Console

from metarun.errors import UserError
from metarun.report import table
from metarun.report.compare import Comparison, compare
from metarun.report.runs import Missing, Run, find

ABOUT = """\
Compares finished runs: one row for each group of runs that differ in their seed only, best first.
Groups that were measured under another protocol stand in a section of their own, with what differs named."""
EXAMPLES = """\
examples:
  metarun report                                     all runs below outputs/
  metarun report outputs/sweeps/2026-11-21           one sweep
  metarun report outputs --plot curves.png --csv runs.csv"""
PICTURES = (".png", ".pdf", ".svg")
LONGEST = 200  # letters of an error


def main(arguments: list[str]) -> int:
    """Prints the comparison and returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a folder's name must not break an ASCII terminal
    parser = _parser()
    try:
        wanted, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"report: {error}. See metarun report --help.") from error
    if unknown:
        raise UserError(f"report knows no {unknown[0]}. See metarun report --help.")
    if wanted.help:
        print(parser.format_help(), end="")
    else:
        _report(wanted)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "metarun report",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("folders", metavar="DIR", nargs="*", type=Path, help="where runs lie (default: outputs)")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the table, accuracies as fractions")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument(
        "--plot", metavar="FILE", type=Path, help="draw validation over training steps (.png, .pdf, .svg)"
    )
    parser.add_argument("-h", "--help", action="store_true", help="print this page")
    return parser


def _report(wanted: argparse.Namespace) -> None:
    folders = wanted.folders or [Path("outputs")]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}. Give one that holds runs, as metarun report outputs.")
    for file in filter(None, (wanted.csv, wanted.plot)):
        if not file.parent.is_dir():
            raise UserError(f"cannot write {file}: there is no folder {file.parent}. Create it first.")
    if wanted.plot and wanted.plot.suffix not in PICTURES:
        raise UserError(f"--plot {wanted.plot} is no picture that report draws. Let it end in {', '.join(PICTURES)}.")
    found = list(find(folders))
    runs = [run for run in found if isinstance(run, Run)]
    missing = [run for run in found if isinstance(run, Missing)]
    places = ", ".join(map(str, folders))
    if not found:
        raise UserError(f"no run in or below {places}. Give a folder that holds runs, as metarun report outputs.")
    if not runs:
        _say_missing(missing)
        raise UserError(
            f"none of the {len(missing)} runs below {places} is finished. metarun resume=DIR goes on with one."
        )
    comparison = compare(runs)
    _print(comparison, wanted.markdown)
    _say_missing(missing)
    if wanted.csv or wanted.plot:
        _write(comparison, wanted.csv, wanted.plot)


def _print(comparison: Comparison, as_markdown: bool) -> None:
    if as_markdown:
        _say(table.markdown(comparison) + "\n")
    else:
        _print_table(comparison)
    for note in table.notes(comparison):
        _say(f"- {note}" if as_markdown else note)
    for run in comparison.older:
        _say(f"left out: {run.folder}: seed {run.seed} was run again later with the same settings")


def _print_table(comparison: Comparison) -> None:
    terminal = sys.stdout.isatty()
    width = None if terminal else 160  # a file has no width, and a pipe no reason to leave columns out
    console = Console(file=sys.stdout, force_terminal=terminal, width=width, highlight=False)
    console.print(table.terminal(comparison, console.width, _spelled))


def _say_missing(missing: list[Missing]) -> None:
    if missing:
        _say(f"\nleft out: {len(missing)} {'run' if len(missing) == 1 else 'runs'} without a readable, finished result")
    for run in missing:
        _say(f"  {run.place}: {run.why[:LONGEST]}")


def _write(comparison: Comparison, csv: Path | None, plot: Path | None) -> None:
    """The files that were asked for."""
    bare = []
    writing = csv
    try:
        if csv:
            table.write_csv(comparison, csv)
        writing = plot
        if plot:
            from metarun.report.plot import write_plot  # matplotlib takes a moment to import

            bare = write_plot(comparison, plot)
    except OSError as error:
        raise UserError(
            f"cannot write {writing}: {error.strerror or error}. Give a file that can be written."
        ) from error
    _say("")
    for name, file in (("table", csv), ("curves", plot)):
        if file:
            _say(f"{name:<11}{file}")
    for group in bare:
        _say(f"  without a curve: {group.label} (no validation in metrics.jsonl that all its seeds reached)")


def _say(text: str) -> None:
    print(_spelled(text))


def _spelled(text: str) -> str:
    """A terminal in the C locale knows no ± and no Δ."""
    utf8 = (sys.stdout.encoding or "").lower().startswith("utf")
    return text if utf8 else text.replace("±", "+-").replace("Δ", "delta ")
